"""The stages of an iteration: one typed method per hook, which calls the components and checks what came back.

A phase has one `Stages` for training and one for evaluation, so that a reward listed only under `evaluate` never
reaches the training reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Loss, Outputs, Reward, Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.running import dealing
from rlalign.running.calls import Calls
from rlalign.running.members import Member, implements, once, who
from rlalign.running.returned import checked_batch, expect, numbers
from rlalign.running.scored_before import unscored
from rlalign.running.weighted_rewards import Asked, WeightedSum
from rlalign.running.wrapping import wrapped
from rlalign.world.ranks import here

if TYPE_CHECKING:
    from rlalign.interface.component import Component
    from rlalign.interface.run import Learner, Run


class Stages:
    """The components of one phase that act in training, or those that act in evaluation."""

    def __init__(self, members: Sequence[Member], stage: str) -> None:
        # What only watches does so on one rank: trackers would begin a run of their own on each.
        self.members = tuple(m for m in members if m.role != "observers" or here().leads)
        self._implementing: dict[str, list[Member]] = {}  # by hook: a loss asks for each piece of each step
        self._begun = False
        """Whether they have begun with the responses that are rewarded next."""
        self._call = Calls(self.members, stage)
        self.asked = Asked()
        self._rewards = WeightedSum([m for m in self.members if m.role == "rewards"], self._call, self.asked)
        self._measures = WeightedSum([m for m in self.members if m.role == "use"], self._call, self.asked)
        self._advantage = wrapped("advantage", self._own_advantage, once(self.members), self._call)
        self._update = wrapped("update", self._own_update, once(self.members), self._call)

    def implementing(self, hook: str) -> list[Member]:
        """Who takes part in a stage, in pipeline order; `reward` and `rollout` depend on where one is listed."""
        if hook not in self._implementing:
            roles = {"reward": ("rewards", "use"), "rollout": ("responses",)}.get(hook)
            standing = once(self.members) if roles is None else [m for m in self.members if m.role in roles]
            self._implementing[hook] = [m for m in standing if implements(m.component, hook)]
        return self._implementing[hook]

    def _plain(self, hook: str) -> Member | None:
        """The one component that implements a hook, and does not only wrap it."""
        found = [m for m in self.implementing(hook) if implements(m.component, hook) == "plain"]
        return found[0] if found else None

    # -- stages -----------------------------------------------------------------------------------

    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        """Responses from the component that `responses` names."""
        (member,) = self.implementing("rollout")
        result = self._call(member, "rollout", run=run, examples=examples)
        rollout = expect(result, Rollout, "rollout", member)
        if wrong := rollout.flaw():
            raise ComponentError(f"`rollout` of {who(member)} returned a rollout whose {wrong}")
        return rollout

    @property
    def early(self) -> list[Member]:
        """Those whose scoring can begin before all responses are there."""
        return [m for m in self.implementing("reward") if hasattr(m.component, "ahead") and here().leads]

    def ahead(self, run: Run, rollout: Rollout) -> None:
        """Have them begin with whole groups, without waiting for their scores."""
        self._begun = True
        for member in self.early:
            with self._call.naming("ahead", member):
                rows = unscored(rollout, member)
                new = rollout if rows is None else rollout.take(rows)
                if len(new):
                    member.component.ahead(run, new)  # type: ignore[attr-defined]

    def reward(self, run: Run, rollout: Rollout) -> Reward:
        """The weighted sum of all scores.

        What only an evaluation scores by is among the parts, and in the sum where no reward of the phase is.
        """
        if not self._begun:  # those of another source, or of a policy that tells of nothing early
            self.ahead(run, rollout)
        self._begun = False
        self.asked.last, self.asked.so_far = None, {}
        found = self._rewards(run, rollout)
        if not self._measures.weights:
            return found
        also = self._measures(run, rollout, [Score(x, name) for name, x in found.parts.items()])
        tokens_NT = found.tokens_NT if self._rewards.weights else also.tokens_NT
        both = {**found.metrics, **also.metrics}
        return Reward(tokens_NT, {**found.parts, **also.parts}, both, found.given)

    def reward_seconds(self) -> dict[str, float]:
        """What each reward took since this was last asked."""
        seconds, self._rewards.seconds = self._rewards.seconds, {}
        return seconds

    def advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch:
        """The training batch; by default a response's total reward at every chosen step."""
        with self._call.naming("advantage"):
            result = self._advantage(run=run, rollout=rollout, reward=reward)
        members = self.implementing("advantage")
        return checked_batch(result, members[-1] if members else None)

    @property
    def makes_advantages(self) -> bool:
        """Whether a component does, so that they are not rewards by default, which no loss may read."""
        return self._plain("advantage") is not None

    def _own_advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch:
        """The batch under all wrappers, checked before they get it."""
        member = self._plain("advantage")
        made = member and self._call(member, "advantage", run=run, rollout=rollout, reward=reward)
        if made is None:
            made = Batch.of(rollout, reward, reward.total_N)
        return checked_batch(made, member)

    def loss(self, run: Run, batch: Batch, now: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all losses of a piece, and metrics under the components' names."""
        total = batch.advantage_NT.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for member in self.implementing("loss"):
            piece, leaves = _of_source(member.item.source, batch, now)
            if len(piece) == 0:
                metrics[f"{member.name}/loss"] = total.new_zeros(())
                continue
            # Another component's needs are not its own: what it does not declare it does not see.
            seen = leaves.only(member.component.needs)
            result = self._call(member, "loss", run=run, batch=piece, now=seen)
            if result is None:
                continue
            loss: Loss = expect(result, Loss, "loss", member)
            if "loss" in loss.metrics:
                raise ComponentError(
                    f"`loss` of {who(member)}: a metric `loss` would hide the loss itself; call it otherwise"
                )
            for name, value in {"loss": loss.value, **loss.metrics}.items():
                if not isinstance(value, Tensor) or value.ndim:
                    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ComponentError(
                        f"`loss` of {who(member)}: `{name}` must be a scalar tensor, got {got}; "
                        "batch.mean_over_tokens and its siblings make one"
                    )
            if not loss.value.requires_grad:
                raise ComponentError(
                    f"`loss` of {who(member)} does not depend on `now`, so nothing could be learned from it; "
                    "compute it from the tensors of `now`, without detach"
                )
            total = total + member.item.weight * loss.value
            metrics[f"{member.name}/loss"] = loss.value
            metrics |= {f"{member.name}/{key}": value for key, value in loss.metrics.items()}
        return total, metrics

    def evaluate(self, run: Run, rollout: Rollout) -> dict[str, float]:
        """Metrics of a set of responses, as `<component>/<metric>`."""
        found: dict[str, float] = {}
        for member in self.implementing("evaluate"):
            ask = partial(self._call, member, "evaluate", run=run, rollout=rollout)
            result = dealing.asked(member, ask)
            metrics = {} if result is None else numbers(result, "evaluate", member)
            found |= {f"{member.name}/{key}": value for key, value in metrics.items()}
        return found

    # -- events -----------------------------------------------------------------------------------

    def phase_started(self, run: Run) -> None:
        for member in self.implementing("phase_started"):
            self._call(member, "phase_started", run=run)

    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float] | None:
        """A component's own learning, or None: the loop's."""
        with self._call.naming("update"):
            result = self._update(run=run, batch=batch, learner=learner)
        members = self.implementing("update")
        return None if result is None else numbers(result, "update", members[-1])

    def _own_update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float] | None:
        member = self._plain("update")
        if member is None:
            return None
        own: Mapping[str, float] | None = self._call(member, "update", run=run, batch=batch, learner=learner)
        return own

    def step_started(self, run: Run, batch: Batch) -> None:
        for member in self.implementing("step_started"):
            source = member.item.source
            step = batch if source is None else _step_of(source, batch)
            if len(step):
                self._call(member, "step_started", run=run, batch=step)

    def step_ready(self, run: Run, metrics: Mapping[str, float]) -> bool:
        ready, metrics = True, MappingProxyType(dict(metrics))
        for member in self.implementing("step_ready"):
            result = self._call(member, "step_ready", run=run, metrics=metrics)
            ready &= result is None or expect(result, bool, "step_ready", member)
        return ready

    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
        metrics = MappingProxyType(dict(metrics))
        for member in self.implementing("evaluated"):
            self._call(member, "evaluated", run=run, metrics=metrics)

    def run_ended(self, run: Run, error: Exception | None, dismiss: Callable[[Component], bool]) -> None:
        """Tell those components that `dismiss` says are still there."""
        for member in self.implementing("run_ended"):
            if dismiss(member.component):
                self._call(member, "run_ended", run=run, error=error)

    def iteration_done(
        self, run: Run, rollout: Rollout, reward: Reward, metrics: Mapping[str, float]
    ) -> None:
        metrics = MappingProxyType(dict(metrics))
        for member in self.implementing("iteration_done"):
            self._call(member, "iteration_done", run=run, rollout=rollout, reward=reward, metrics=metrics)


def _of_source(source: str | None, batch: Batch, now: Outputs) -> tuple[Batch, Outputs]:
    """The rows of one source, as a piece of a step that has only such rows."""
    if source is None:
        return batch, now
    here = _rows_of(source, batch)
    return replace(batch.take(here), whole=_step_of(source, batch.step)), now.take(here)


def _step_of(source: str, step: Batch) -> Batch:
    """The rows of one source as a step: one for all pieces, with one set of counts."""
    steps: dict[str, Batch] = step.__dict__.setdefault("_of_source", {})
    if source not in steps:
        steps[source] = step.take(_rows_of(source, step)).as_step()
    return steps[source]


def _rows_of(source: str, batch: Batch) -> Tensor:
    names = batch.rollout.columns.get("source")
    if names is None:
        raise ComponentError(
            f"`source: {source}` needs `responses: {{mix: ...}}`; these responses have one source"
        )
    rows = [i for i, name in enumerate(names) if name == source]
    return torch.tensor(rows, dtype=torch.long, device=batch.rollout.group_N.device)
