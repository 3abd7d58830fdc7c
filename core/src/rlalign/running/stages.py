"""The stages of an iteration: one typed method per hook, which calls the components and checks what came back.

A phase has one `Stages` for training and one for evaluation, so that a reward listed only under `evaluate` never
reaches the training reward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Loss, Outputs, Reward, Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, RLAlignError, describe_error
from rlalign.running.calls import Caller, around, wrapped
from rlalign.running.members import Member, culprit, implements, once, who
from rlalign.running.returned import checked_batch, checked_score, checked_scores, expect, numbers

if TYPE_CHECKING:
    from rlalign.interface.run import Learner, Run


class Stages:
    """The components of one phase, ready to be called."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self._callers = {id(m.component): Caller(m) for m in once(self.members)}
        self._scores = self._nested([m for m in self.members if m.role in ("rewards", "use")])
        self._advantage = wrapped("advantage", self._own_advantage, once(self.members))
        self._update = wrapped("update", self._own_update, once(self.members))

    def implementing(self, hook: str) -> list[Member]:
        """Who takes part in a stage, in pipeline order; `reward` and `rollout` depend on where one is listed."""
        roles = {"reward": ("rewards", "use"), "rollout": ("responses",)}.get(hook)
        standing = once(self.members) if roles is None else [m for m in self.members if m.role in roles]
        return [m for m in standing if implements(m.component, hook)]

    def _call(self, member: Member, hook: str, **arguments: Any) -> Any:
        with self._blame(hook, member):
            return self._callers[id(member.component)](hook, **arguments)

    def _plain(self, hook: str) -> Member | None:
        """The one component that implements a hook, and does not only wrap it."""
        found = [m for m in self.implementing(hook) if implements(m.component, hook) == "plain"]
        return found[0] if found else None

    @contextmanager
    def _blame(self, hook: str, member: Member | None = None) -> Iterator[None]:
        """Name the component in whatever goes wrong inside, unless the error names one itself."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RLAlignError as error:
            guilty = culprit(error, self.members) or member
            if guilty is None or any(f"`{m.name}`" in str(error) for m in self.members):
                raise
            raise type(error)(f"`{hook}` of {who(guilty)}: {error}") from error
        except Exception as error:
            guilty = culprit(error, self.members) or member
            whose = who(guilty)
            raise ComponentError(f"`{hook}` of {whose} raised {describe_error(error)}") from error

    # -- stages -----------------------------------------------------------------------------------

    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        """Responses from the component that `responses` names."""
        (member,) = self.implementing("rollout")
        result = self._call(member, "rollout", run=run, examples=examples)
        rollout = expect(result, Rollout, "rollout", member)
        if wrong := rollout.flaw():
            raise ComponentError(f"`rollout` of {who(member)} returned a rollout whose {wrong}")
        return rollout

    def reward(self, run: Run, rollout: Rollout) -> Reward:
        """The weighted sum of all scores."""
        weights = {m.name: m.item.weight for m in self.implementing("reward")}
        dtype = rollout.logprobs_NT.dtype
        tokens_NT = torch.zeros(rollout.mask_NT.shape, dtype=dtype, device=rollout.mask_NT.device)
        parts: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for score in self._scores(run=run, rollout=rollout):
            name = str(score.name)
            value = score.value.to(tokens_NT)
            tokens_NT = tokens_NT + weights[name] * pay(value, rollout)
            parts[name] = value
            metrics |= {f"{name}/{metric}": x for metric, x in score.metrics.items()}
        return Reward(tokens_NT, parts, metrics)

    def _nested(self, listed: Sequence[Member]) -> Callable[..., list[Score]]:
        """Every reward's score, named, unweighted, in pipeline order; a wrapper wraps all items above it."""
        items: list[Member] = []
        inner: Callable[..., list[Score]] | None = None
        for member in listed:
            kind = implements(member.component, "reward")
            if kind == "plain":
                items.append(member)
            elif kind == "wrapper":
                inner, items = self._wrapped_scores(member, self._level(inner, items)), []
        return self._level(inner, items)

    def _level(
        self, inner: Callable[..., list[Score]] | None, items: Sequence[Member]
    ) -> Callable[..., list[Score]]:
        def scores(run: Run, rollout: Rollout) -> list[Score]:
            found = inner(run=run, rollout=rollout) if inner else []
            for member in items:
                score = self._call(member, "reward", run=run, rollout=rollout)
                found = [*found, replace(checked_score(score, member, rollout), name=member.name)]
            return found

        return scores

    def _wrapped_scores(
        self, member: Member, above: Callable[..., list[Score]]
    ) -> Callable[..., list[Score]]:
        names: list[str | None] = []

        def noted(run: Run, rollout: Rollout) -> list[Score]:
            scores = above(run=run, rollout=rollout)
            names[:] = [score.name for score in scores]
            return scores

        call = around(member, "reward", noted)

        def scores(run: Run, rollout: Rollout) -> list[Score]:
            with self._blame("reward", member):
                result = call(run=run, rollout=rollout)
            return checked_scores(result, names, member, rollout)

        return scores

    def advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch:
        """The training batch; by default a response's total reward at every chosen step."""
        with self._blame("advantage"):
            result = self._advantage(run=run, rollout=rollout, reward=reward)
        members = self.implementing("advantage")
        return checked_batch(result, members[-1] if members else None)

    def _own_advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch:
        """Checked before a wrapper stumbles over it."""
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
            for name, value in {"value": loss.value, **loss.metrics}.items():
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
            result = self._call(member, "evaluate", run=run, rollout=rollout)
            metrics = {} if result is None else numbers(result, "evaluate", member)
            found |= {f"{member.name}/{key}": value for key, value in metrics.items()}
        return found

    # -- events -----------------------------------------------------------------------------------

    def phase_started(self, run: Run) -> None:
        for member in self.implementing("phase_started"):
            self._call(member, "phase_started", run=run)

    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float] | None:
        """A component's own learning, or None: the loop's."""
        with self._blame("update"):
            result = self._update(run=run, batch=batch, learner=learner)
        members = self.implementing("update")
        return None if result is None else numbers(result, "update", members[-1])

    def _own_update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float] | None:
        member = self._plain("update")
        if member is None:
            return None
        own: Mapping[str, float] | None = self._call(member, "update", run=run, batch=batch, learner=learner)
        return own

    def step_ready(self, run: Run, metrics: Mapping[str, float]) -> bool:
        ready = True
        for member in self.implementing("step_ready"):
            result = self._call(member, "step_ready", run=run, metrics=metrics)
            ready &= result is None or expect(result, bool, "step_ready", member)
        return ready

    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
        for member in self.implementing("evaluated"):
            self._call(member, "evaluated", run=run, metrics=metrics)

    def iteration_done(
        self, run: Run, rollout: Rollout, reward: Reward, metrics: Mapping[str, float]
    ) -> None:
        for member in self.implementing("iteration_done"):
            self._call(member, "iteration_done", run=run, rollout=rollout, reward=reward, metrics=metrics)


def pay(value: Tensor, rollout: Rollout) -> Tensor:
    """A score as [N,T]: one a response is paid on its last chosen step."""
    if value.ndim == 2:
        return torch.where(rollout.mask_NT, value, value.new_zeros(()))
    paid_NT = value.new_zeros(rollout.mask_NT.shape)
    rows_N = torch.arange(len(rollout), device=value.device)
    paid_NT[rows_N, rollout.length_N - 1] = value
    return paid_NT


def _of_source(source: str | None, batch: Batch, now: Outputs) -> tuple[Batch, Outputs]:
    """The rows of one source, as a piece of a step that has only such rows."""
    if source is None:
        return batch, now
    here = _rows_of(source, batch)
    steps = batch.step.__dict__.setdefault("_of_source", {})  # one for all pieces, with one set of counts
    if source not in steps:
        steps[source] = batch.step.take(_rows_of(source, batch.step)).as_step()
    return replace(batch.take(here), whole=steps[source]), now.take(here)


def _rows_of(source: str, batch: Batch) -> Tensor:
    names = batch.rollout.columns.get("source")
    if names is None:
        raise ComponentError(
            f"`source: {source}` needs `responses: {{mix: ...}}`; these responses have one source"
        )
    rows = [i for i, name in enumerate(names) if name == source]
    return torch.tensor(rows, dtype=torch.long, device=batch.rollout.group_N.device)
