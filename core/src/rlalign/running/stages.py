"""The only module that calls pluggy: one typed method a hook, which checks what came back.

A phase has one `Stages` for training and one for evaluation, each over its own plugin manager, so
that a reward listed only under `evaluate` never reaches the training reward.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from torch import Tensor

from rlalign.data.batch import Batch, Loss, Outputs, Reward, Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, ConfigError, RLAlignError, told
from rlalign.interface import hooks
from rlalign.interface.hooks import hookimpl, hookspec
from rlalign.running.members import HOOKS, Member, implements, once, who
from rlalign.running.returned import checked_batch, checked_score, expect, numbers

if TYPE_CHECKING:
    from rlalign.interface.run import Learner, Run


class _Default:
    @hookimpl(trylast=True)
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N)


class _Innermost:
    """Checks what the component under all wrappers made, before one of them stumbles over it."""

    def __init__(self, member: Member | None) -> None:
        self.member = member

    @hookimpl(wrapper=True, trylast=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        return checked_batch((yield), self.member)


class _Wrapped:
    """The specification under which a `reward` wrapper runs: it wraps one list of scores."""

    @hookspec(firstresult=True)
    def reward(self, run: Run, rollout: Rollout) -> list[Score] | None: ...


class _Above:
    """The items above a `reward` wrapper, as the one thing it wraps."""

    def __init__(self, compute: Callable[[Run, Rollout], list[Score]]) -> None:
        self.compute = compute
        self.names: list[str | None] = []

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> list[Score]:
        scores = self.compute(run, rollout)
        self.names = [score.name for score in scores]
        return scores


class Stages:
    """The components of one phase, ready to be called."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self._manager = pluggy.PluginManager("rlalign")
        self._manager.add_hookspecs(hooks)
        for i, member in enumerate(once(self.members)):
            self._register(self._manager, member, f"{i}:{member.name}")
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            self._refuse_unknown(error)
        self._manager.register(_Default(), "default")
        plain = [m for m in self.members if implements(m.component, "advantage") == "plain"]
        self._manager.register(_Innermost(plain[0] if plain else None), "innermost")
        self._callers: dict[tuple[str, int], Any] = {}
        self._score_all = self._nest([m for m in self.members if m.role in ("rewards", "use")])

    def _register(self, manager: pluggy.PluginManager, member: Member, name: str) -> None:
        try:
            manager.register(member.component, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            said = str(error).replace("\n", "; ")
            raise ConfigError(f"{who(member)} cannot take part: {said}") from error

    def _refuse_unknown(self, error: pluggy.PluginValidationError) -> None:
        member = next((m for m in self.members if m.component is error.plugin), None)
        name = str(error).split("'")[1]
        close = get_close_matches(name, HOOKS, 1)
        hint = f"did you mean `{close[0]}`?" if close else f"the hooks are {', '.join(HOOKS)}"
        raise ConfigError(f"{who(member)} marks `{name}` as a hook, and there is none; {hint}") from error

    def implementing(self, hook: str) -> list[Member]:
        """Who takes part in a stage, in pipeline order; `reward` and `rollout` depend on where one is listed."""
        roles = {"reward": ("rewards", "use"), "rollout": ("responses",)}.get(hook)
        standing = once(self.members) if roles is None else [m for m in self.members if m.role in roles]
        return [m for m in standing if implements(m.component, hook)]

    def _call(self, member: Member, hook: str, **arguments: Any) -> Any:
        key = (hook, id(member))
        if key not in self._callers:
            others = [m.component for m in self.members if m.component is not member.component]
            default = self._manager.get_plugin("default")
            self._callers[key] = self._manager.subset_hook_caller(hook, [*others, default])
        with self._blame(hook, member):
            result = self._callers[key](**arguments)
        # A hook that is not `firstresult` answers with a list, here of one component's result.
        return (result[0] if result else None) if isinstance(result, list) else result

    @contextmanager
    def _blame(self, hook: str, member: Member | None = None) -> Iterator[None]:
        """Name the component in whatever goes wrong inside, unless the error names one itself."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RLAlignError as error:
            guilty = self._culprit(error) or member
            if guilty is None or any(f"`{m.name}`" in str(error) for m in self.members):
                raise
            raise type(error)(f"`{hook}` of {who(guilty)}: {error}") from error
        except Exception as error:
            guilty = self._culprit(error) or member
            whose = who(guilty)
            raise ComponentError(f"`{hook}` of {whose} raised {told(error)}") from error

    def _culprit(self, error: Exception) -> Member | None:
        """The component deepest in the traceback: an error passes through the wrappers above it."""
        guilty, trace = None, error.__traceback__
        while trace is not None:
            me = trace.tb_frame.f_locals.get("self")
            guilty = next((m for m in self.members if m.component is me), guilty)
            trace = trace.tb_next
        return guilty

    # -- stages -----------------------------------------------------------------------------------

    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        """Responses from the component that `responses` names."""
        (member,) = self.implementing("rollout")
        result = self._call(member, "rollout", run=run, examples=examples)
        rollout = expect(result, Rollout, "rollout", member)
        if wrong := rollout.flaw():
            raise ComponentError(f"`rollout` of {who(member)} returned a rollout whose {wrong}")
        return rollout

    def scores(self, run: Run, rollout: Rollout) -> list[Score]:
        """Every reward's score, named, unweighted, in pipeline order, wrappers applied."""
        return self._score_all(run, rollout)

    def reward(self, run: Run, rollout: Rollout) -> Reward:
        """The weighted sum of all scores."""
        weights = {m.name: m.item.weight for m in self.implementing("reward")}
        dtype = rollout.logprobs_NT.dtype
        tokens_NT = torch.zeros(rollout.mask_NT.shape, dtype=dtype, device=rollout.mask_NT.device)
        parts: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for score in self.scores(run, rollout):
            name = str(score.name)
            value = score.value.to(tokens_NT)
            tokens_NT = tokens_NT + weights[name] * pay(value, rollout)
            parts[name] = value
            metrics |= {f"{name}/{metric}": x for metric, x in score.metrics.items()}
        return Reward(tokens_NT, parts, metrics)

    def _nest(self, listed: Sequence[Member]) -> Callable[[Run, Rollout], list[Score]]:
        """A wrapper wraps all items above it: each closes a manager of its own over what came before."""
        items: list[Member] = []
        inner: Callable[[Run, Rollout], list[Score]] | None = None
        for member in listed:
            kind = implements(member.component, "reward")
            if kind == "plain":
                items.append(member)
            elif kind == "wrapper":
                inner, items = self._wrap(member, self._level(inner, items)), []
        return self._level(inner, items)

    def _level(
        self, inner: Callable[[Run, Rollout], list[Score]] | None, items: Sequence[Member]
    ) -> Callable[[Run, Rollout], list[Score]]:
        def scores(run: Run, rollout: Rollout) -> list[Score]:
            found = inner(run, rollout) if inner else []
            for member in items:
                score = self._call(member, "reward", run=run, rollout=rollout)
                found = [*found, replace(checked_score(score, member, rollout), name=member.name)]
            return found

        return scores

    def _wrap(
        self, member: Member, above: Callable[[Run, Rollout], list[Score]]
    ) -> Callable[[Run, Rollout], list[Score]]:
        manager = pluggy.PluginManager("rlalign")
        manager.add_hookspecs(_Wrapped)
        wrapped = _Above(above)
        manager.register(wrapped, "above")
        manager.register(member.component, member.name)

        def scores(run: Run, rollout: Rollout) -> list[Score]:
            with self._blame("reward", member):
                result = manager.hook.reward(run=run, rollout=rollout)
            if not isinstance(result, list) or not all(isinstance(s, Score) for s in result):
                raise ComponentError(f"`reward` of {who(member)} must return the list of scores it wraps")
            if (names := [s.name for s in result]) != wrapped.names:
                raise ComponentError(
                    f"`reward` of {who(member)} must return the scores {wrapped.names}, got {names}"
                )
            return [checked_score(s, member, rollout) for s in result]

        return scores

    def advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch:
        """The training batch; by default a response's total reward at every chosen step."""
        with self._blame("advantage"):
            result = self._manager.hook.advantage(run=run, rollout=rollout, reward=reward)
        members = self.implementing("advantage")
        return checked_batch(result, members[-1] if members else None)

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
            result = self._manager.hook.update(run=run, batch=batch, learner=learner)
        members = self.implementing("update")
        return None if result is None else numbers(result, "update", members[-1])

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
