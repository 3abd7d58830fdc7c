"""A phase as its hooks see it: read-only."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlalign.data.batch import Outputs, Reward, Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.errors import ComponentError
from rlalign.interface.component import Task
from rlalign.interface.policy import Model, ModelMap, Policy
from rlalign.interface.run import Learner
from rlalign.learning.draw import Draw
from rlalign.running.bad_rewards import saved_if_bad
from rlalign.running.checks import COLUMNS
from rlalign.running.models import Models
from rlalign.running.phase import RunningPhase
from rlalign.running.plan import PhasePlan
from rlalign.running.responses import rewarded, sample
from rlalign.running.untouched import Untouched
from rlalign.running.workspace import Workspace

ASKED = ("draw", "sample", "logged", "score", "scores_above", "column", "finish_phase")
"""Members of a run that have it do something, or decide what it does."""


def open_phase(workspace: Workspace, plan: PhasePlan, repeat: int, place: int) -> RunningPhase:
    """A phase, and what its hooks see of it."""
    phase = RunningPhase(workspace, plan, repeat, place)
    phase.run = RunView(phase)
    return phase


class Standing:
    """Which run it is, and where it stands."""

    _phase: RunningPhase

    @property
    def folder(self) -> Path:
        return self._phase.workspace.dir.path.absolute()

    @property
    def pipeline(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(json.dumps(self._phase.workspace.pipeline.resolved))
        return said

    @property
    def phase(self) -> str:
        return self._phase.settings.name

    @property
    def repeat(self) -> int:
        return self._phase.repeat

    @property
    def iteration(self) -> int:
        return self._phase.iteration

    @property
    def step(self) -> int:
        return self._phase.step

    @property
    def tick(self) -> int:
        return self._phase.tick

    @property
    def progress(self) -> float:
        self._phase.progress_matters = True
        return self._phase.progress

    @property
    def position(self) -> int:
        return self._phase.position


class RunView(Standing):
    """`Run` says what each member is for."""

    _models: ModelsView
    _draw: DrawView
    untouched: Untouched
    above: list[Callable[[Rollout], list[Score]] | None]
    """By wrapper of rewards that has not returned yet, the innermost last: what asks the items above it."""

    def __init__(self, phase: RunningPhase) -> None:
        held = {"_phase": phase, "_models": ModelsView(phase.models), "_draw": DrawView(phase)}
        self.__dict__.update(held, untouched=phase.untouched, above=[])

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"run.{name} cannot be assigned; a component keeps its state on itself")

    def __getattr__(self, name: str) -> Any:
        hint = f"; in an `update` hook, `learner.{name}` is there" if hasattr(Learner, name) else ""
        raise AttributeError(f"run.{name}: a run has no such member{hint}")

    @property
    def watched(self) -> WatchedRun:
        """The same for what only watches."""
        return WatchedRun(self._phase)

    # -- what it is made of -------------------------------------------------------------------------

    @property
    def models(self) -> ModelsView:
        return self._models

    @property
    def task(self) -> Task:
        return self._phase.plan.task

    @property
    def draw(self) -> DrawView:
        return self._draw

    @property
    def generation(self) -> Sampling:
        return self._phase.settings.generation

    # -- what it can do -----------------------------------------------------------------------------

    def sample(self, examples: Sequence[Example], count: int | None = None) -> Rollout:
        phase, how = self._phase, self.generation
        how = how if count is None else how.model_copy(update={"samples": count})
        key = ("sample", phase.repeat, phase.place, phase.iteration)
        with phase.untouched.core():
            return sample(phase, examples, how, key, phase.position, finished=phase.finished)

    def logged(self, examples: Sequence[Example]) -> Rollout:
        with self._phase.untouched.core():
            return self._phase.logged.rollout(examples)

    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        if unknown := [name for name in want if name not in COLUMNS]:
            known = ", ".join(f"`{name}`" for name in COLUMNS)
            raise ComponentError(f"run.score: no model says `{unknown[0]}` of responses; there are {known}")
        with self._phase.untouched.core():
            held = self._phase.outputs.score(model, rollout, want)
        return Outputs(**{name: x.clone() for name, x in held.items().items()})  # others ask for them too

    def column(
        self, name: str, compute: Callable[[Rollout, Reward], Tensor], key: Sequence[str | int | float] = ()
    ) -> Tensor:
        phase, plan, data = self._phase, self._phase.plan, self._phase.workspace.data

        def scored(rollout: Rollout) -> tuple[Rollout, Reward]:
            with saved_if_bad(phase, rollout):
                return rewarded(phase, plan.training, rollout, plan.reward_columns)

        with phase.untouched.core():
            return phase.logged.column(
                name,
                compute,
                key,
                lambda: data.fingerprint(plan, phase.draw.data),
                scored,
            )

    def scores_above(self, rollout: Rollout) -> list[Score]:
        if not self.above or (ask := self.above[-1]) is None:
            raise ComponentError(
                "run.scores_above asks what stands above a wrapper, so it belongs into a `reward` hook marked "
                "`@hookimpl(wrapper=True)`"
            )
        return ask(rollout)

    def rng(self, *key: str | int) -> torch.Generator:
        return self._phase.rng(*key)

    def note(self, text: str) -> None:
        self._phase.workspace.display.note(text)

    def finish_phase(self, reason: str) -> None:
        self._phase.ending = reason


class WatchedRun(RunView):
    """A phase as observers see it: they may look, and ask the run for nothing."""

    def __getattribute__(self, name: str) -> Any:
        if name in ASKED:
            raise ComponentError(
                f"run.{name} is not for what stands under `observers`, which only watches; "
                "a component that has the run do something belongs under `algorithm`"
            )
        return super().__getattribute__(name)


class ModelsView(ModelMap):
    """The models by name, and no more of what the core knows of them."""

    def __init__(self, models: Models) -> None:
        self._held = models

    def __getitem__(self, name: str) -> Model:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def policy(self) -> Policy:
        return self._held.policy


class DrawView:
    """`Draws` says what each member is for."""

    def __init__(self, phase: RunningPhase) -> None:
        self._phase = phase

    def weights(self, w: Tensor, unit: Literal["response", "example"] = "response") -> None:
        self._drawing("weights").weights(w, unit)

    def scale(self, share: float) -> None:
        self._drawing("scale").scale(share)

    def row_starts(self) -> Tensor:
        return self._phase.draw.row_starts().clone()

    def _drawing(self, name: str) -> Draw:
        if (hook := self._phase.untouched.hook_now) not in (None, "phase_started"):
            raise ComponentError(f"run.draw.{name} belongs into `phase_started`: `{hook}` comes too late")
        return self._phase.draw
