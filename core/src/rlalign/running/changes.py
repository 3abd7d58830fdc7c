"""What is said anew of a run that goes on: whether the run can take it, whether it stays exact, and the note of it.

A run goes on exactly where one that had been begun so would have computed the same until now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlalign.config.pipeline import Evaluate, Item, Phase, Pipeline
from rlalign.data.settings import Sampling, Train
from rlalign.errors import ConfigError
from rlalign.records.checkpoint import Checkpoint
from rlalign.records.environment import changed_values
from rlalign.running.checkpointing import is_over
from rlalign.running.workspace import Workspace

LENGTH = {"train.iterations", "train.passes"}
NEW_RUN = "begin a run with this one's model instead (docs/runs.md)"


def extension(pipeline: Pipeline, more: int, share: float = 1.0) -> str:
    """`--extend` as the `key=value` that it stands for; `share` of the iterations are made."""
    phase = pipeline.phases[-1]
    scope = f"phases.{len(pipeline.phases) - 1}." if "phases" in pipeline.resolved else ""
    if pipeline.repeat > 1:
        raise ConfigError(
            f"--extend: the phases run {pipeline.repeat} times; say how often they shall run in all: "
            f"`repeat={pipeline.repeat + 1}`"
        )
    if phase.train.iterations is None:
        raise ConfigError(
            f"--extend adds iterations, and `{phase.name}` counts passes over the data; say how many it shall have "
            f"in all: `{scope}train.passes={(phase.train.passes or 1) + 1:g}`"
        )
    if share != 1:
        raise ConfigError(
            f"--extend adds iterations, and a component has the run make {share:.3g} times those that it says; say of "
            f"how many: `{scope}train.iterations={2 * phase.train.iterations}`"
        )
    return f"{scope}train.iterations={phase.train.iterations + more}"


def judge(was: Workspace, now: Workspace, saved: Checkpoint | None) -> list[str]:
    """Why a run that goes on with `now` is not one that was begun so; nothing where it is.

    A ConfigError tells what cannot be changed, before anything is written.
    """
    refused = [*_fixed(was, now, saved)]
    if refused:
        raise _error(refused)
    reasons: list[str] = []
    if saved is None:  # it starts again
        return reasons
    before, after = was.pipeline, now.pipeline
    over = is_over(now, saved)
    then = _machinery(before)
    moved = [name for name, value in _machinery(after).items() if then[name] != value]
    other = any(getattr(before, name) != getattr(after, name) for name in ("checkpoints", "repeat"))
    effect = not over and (other or bool(moved))
    reasons += [f"{name} changes after {_counted(saved.index)}" for name in moved]
    for place, (old, new) in enumerate(zip(before.phases, after.phases, strict=True)):
        if differing := _differing(old, new):
            judged = _Phase(was, now, saved, place, differing)
            refused += judged.refused()
            reasons += judged.inexact()
            effect = effect or not judged.is_over
    if refused:
        raise _error(refused)
    if not effect and over:
        raise _error(["the run is finished, so nothing would change; make it longer: `--extend 20`"])
    if not effect and reasons:
        raise _error([f"{reasons[0]}: that phase is over, so nothing would change"])
    return reasons


def _machinery(pipeline: Pipeline) -> dict[str, Any]:
    """On what, and how, numbers are computed: what is said once, and changes them by rounding."""
    lies = {f"distributed.{name}": value for name, value in pipeline.distributed}
    return {"device": pipeline.device, "deterministic": pipeline.deterministic, **lies}


def _error(lines: list[str]) -> ConfigError:
    return ConfigError(
        "a run that has begun cannot be changed so:\n" + "\n".join(f"  {line}" for line in lines)
    )


def _counted(iterations: int) -> str:
    return f"{iterations} iteration{'' if iterations == 1 else 's'}"


def _fixed(was: Workspace, now: Workspace, saved: Checkpoint | None) -> Iterator[str]:
    """What can change on no run."""
    before, after = was.pipeline, now.pipeline
    if _item(before.policy) != _item(after.policy):
        yield f"policy: its checkpoints hold the weights of the one that it has; {NEW_RUN}"
    if before.seed != after.seed:
        yield "seed: every number so far follows from it; start a new run"
    if [phase.name for phase in before.phases] != [phase.name for phase in after.phases]:
        yield f"phases: their names and their order are what its checkpoints count by; {NEW_RUN}"
    held = {phase.train.held for phase in (*before.phases, *after.phases)}
    if len(held) > 1:
        key = "dtype" if "float64" in held else "weights"
        yield f"train.{key}: the weights of this run are held in another precision; start a new run"
    if saved is None:
        return
    place, repeat = saved.loop["place"], saved.loop["repeat"]
    if after.repeat <= repeat:
        yield f"repeat: pass {repeat + 1} over the phases has begun; say at least as many"
    for phase in before.phases[: None if repeat else place + 1]:
        read_now, read_then = (space.data.is_read_later(phase.name) for space in (now, was))
        if read_now and not (read_then or phase.train.keep_responses):
            yield f"task: {{from: {phase.name}}}: the responses of `{phase.name}` were not kept; {NEW_RUN}"


class _Phase:
    """A phase that differs, as far as a run has come with it."""

    def __init__(
        self, was: Workspace, now: Workspace, saved: Checkpoint, place: int, differing: Mapping[str, Any]
    ) -> None:
        self.was, self.now, self.differing = was, now, differing
        self.plan, self.old_plan = now.plans[place], was.plans[place]
        self.settings, self.old = now.pipeline.phases[place], was.pipeline.phases[place]
        loop = saved.loop
        self.state, self.repeat = loop["phase"], loop["repeat"]
        self.stands = place == loop["place"]
        """Whether the checkpoint is one of this phase."""
        self.begun = place <= loop["place"] or self.repeat > 0
        self.longer = self.stands and is_over(now, saved) and bool(LENGTH & set(differing))
        """Whether it was over, and shall go on."""
        behind = place < loop["place"] or (self.stands and loop["done"])
        self.is_over = behind and self.repeat == now.pipeline.repeat - 1 and not self.longer
        self.goes_on = self.stands and (self.longer or not loop["done"])
        self.scope = f"phases.{self.settings.name}." if len(was.pipeline.phases) > 1 else ""

    def refused(self) -> Iterator[str]:
        """What does not fit the checkpoint."""
        name = self.settings.name
        if not self.begun:
            return
        if _models(self.old) != _models(self.settings) or (
            self.goes_on
            and any(getattr(self.old_plan, each) != getattr(self.plan, each) for each in ("models", "trains"))
        ):
            yield f"{self.scope}models: `{name}` has begun with those that it has, and would need others; {NEW_RUN}"
        if not self.goes_on:
            return
        if self.old.task.component != self.settings.task.component or self.old.origin != self.settings.origin:
            yield f"{self.scope}task: `{name}` has begun with the examples that it has; {NEW_RUN}"
        if length := LENGTH & set(self.differing):
            yield from self._too_short(min(length))

    def _too_short(self, key: str) -> Iterator[str]:
        done, ending = self.state["iteration"], self.state["ending"]
        if ending is not None:
            yield f"{self.scope}{key}: `{self.settings.name}` was ended by a component: {ending}"
        elif _planned(self.old, self.settings, self.state["iterations"]) <= done:
            yield f"{self.scope}{key}: {_counted(done)} of `{self.settings.name}` are done; say more than that"

    def inexact(self) -> Iterator[str]:
        """Why a run that was begun so would be another one, a line for each option."""
        if not self.begun:
            return
        gone = f"pass {self.repeat}" if self.repeat and not self.stands else _counted(self.state["iteration"])
        for key in self.differing:
            if key == "isolate":  # where a reward is computed changes no number
                continue
            line = f"{self.scope}{key} changes after {gone} of `{self.settings.name}`"
            if self.goes_on and self.repeat == 0:
                if key in LENGTH:
                    why = self._length_matters()
                    if why is None:
                        continue
                    line += f", and {why}"
                elif key == "evaluate.every" and self._same_evaluations():
                    continue
            yield line

    def _length_matters(self) -> str | None:
        """What has depended on how long the phase is."""
        schedule, asked = self.settings.train.schedule, self.settings.evaluate
        if schedule.shape != "constant" or schedule.warmup:
            return "the learning rate depends on how long it is"
        if self.state["progress_matters"]:
            return "a component has asked how far it is"
        if self.longer and self.plan.asks_ahead:
            return "no responses were sampled ahead in its last iteration"
        iteration = self.state["iteration"]
        watched = any(stages.implementing("evaluated") for stages in self.plan.told)
        extra = self.longer and asked is not None and (not asked.every or iteration % asked.every)
        return "a component has heard of the evaluation at its end" if extra and watched else None

    def _same_evaluations(self) -> bool:
        old, new = self.old.evaluate, self.settings.evaluate
        if old is None or new is None:
            return False

        def told(asked: Evaluate) -> set[int]:
            return set(range(asked.every, self.state["iteration"] + 1, asked.every)) if asked.every else set()

        return told(old) == told(new)


def _planned(old: Phase, new: Phase, iterations: int) -> float:
    """About how many iterations the phase will have, after so many as it was."""
    if (old.train.iterations is None) != (new.train.iterations is None):
        return new.train.iterations or float("inf")
    was, now = (phase.train.iterations or phase.train.passes or 1 for phase in (old, new))
    return round(iterations * now / was)


def _differing(old: Phase, new: Phase) -> dict[str, Any]:
    """The options of a phase that differ."""
    then, now = _said(old), _said(new)
    return {key: now.get(key) for key in {**then, **now} if then.get(key, ...) != now.get(key, ...)}


def _said(phase: Phase) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": (_item(phase.task), phase.origin),
        "responses": _item(phase.responses),
        "rewards": [_item(item) for item in phase.rewards],
        "algorithm": [_item(item) for item in phase.algorithm],
        "models": _models(phase),
        "isolate": [item.isolate for item in _scoring(phase)],
        **{f"generation.{name}": getattr(phase.generation, name) for name in Sampling.model_fields},
        **{f"train.{name}": getattr(phase.train, name) for name in Train.model_fields},
    }
    asked = phase.evaluate
    if asked is None:
        return found
    found |= {f"evaluate.{name}": getattr(asked, name) for name in Evaluate.model_fields}
    return {**found, "evaluate.use": [_item(item) for item in asked.use]}


def _scoring(phase: Phase) -> tuple[Item, ...]:
    return (*phase.rewards, *(phase.evaluate.use or () if phase.evaluate else ()))


def _models(phase: Phase) -> dict[str, Any]:
    return {n: (spec.of, spec.dtype, spec.item and _item(spec.item)) for n, spec in phase.models.items()}


def _item(item: Item) -> tuple[Any, ...]:
    return (item.component, item.identity, item.weight, item.name, item.source)


# -- the note of it in lock.json -----------------------------------------------------------------------------


def noted(
    lock: Mapping[str, Any],
    old: Mapping[str, Any],
    *,
    fingerprint: str,
    checkpoint: int | None,
    inexact: list[str],
) -> dict[str, Any]:
    """A lock with one more change: from the pipeline of `old`, whose file had this fingerprint, at this checkpoint."""
    values = [
        {"key": key, "from": was, "to": now}
        for key, was, now in changed_values(old["pipeline"], lock["pipeline"])
    ]
    change = {"checkpoint": checkpoint, "lock": fingerprint, "values": values, "inexact": inexact}
    found = {**lock, "changes": [*old.get("changes", []), change]}
    return {**found, "checksum": _checksum(found)}


def since(lock: Mapping[str, Any], now: str, then: str) -> list[dict[str, Any]] | None:
    """The changes since the lock's file had the fingerprint `then`; None if it was edited beside them."""
    if now == then:
        return []
    changes: list[dict[str, Any]] = lock.get("changes", [])
    if lock.get("checksum") != _checksum(lock):
        return None
    return next((changes[i:] for i, change in enumerate(changes) if change["lock"] == then), None)


def _checksum(lock: Mapping[str, Any]) -> str:
    content = {key: value for key, value in lock.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
