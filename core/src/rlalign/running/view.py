"""A phase as its hooks see it: read-only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import Outputs, Reward
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.interface.component import Task
from rlalign.interface.run import Learner
from rlalign.learning.draw import Draw
from rlalign.running.models import Models
from rlalign.running.phase import RunningPhase
from rlalign.running.plan import PhasePlan
from rlalign.running.responses import rewarded, sample
from rlalign.running.workspace import Workspace


def open_phase(workspace: Workspace, plan: PhasePlan, repeat: int, place: int) -> RunningPhase:
    """A phase, and what its hooks see of it."""
    phase = RunningPhase(workspace, plan, repeat, place)
    phase.run = RunView(phase)
    return phase


class RunView:
    """`Run` says what each member is for."""

    _phase: RunningPhase

    def __init__(self, phase: RunningPhase) -> None:
        object.__setattr__(self, "_phase", phase)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"run.{name} cannot be assigned; a component keeps its state on itself")

    def __getattr__(self, name: str) -> Any:
        hint = f"; in an `update` hook, `learner.{name}` is there" if hasattr(Learner, name) else ""
        raise AttributeError(f"run.{name}: a run has no such member{hint}")

    # -- where the run stands -----------------------------------------------------------------------

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
    def progress(self) -> float:
        return self._phase.progress

    # -- what it is made of -------------------------------------------------------------------------

    @property
    def models(self) -> Models:
        return self._phase.models

    @property
    def task(self) -> Task:
        return self._phase.plan.task

    @property
    def draw(self) -> Draw:
        return self._phase.draw

    @property
    def generation(self) -> Sampling:
        return self._phase.settings.generation

    @property
    def position(self) -> int:
        return self._phase.position

    # -- what it can do -----------------------------------------------------------------------------

    def sample(self, examples: Sequence[Example], count: int | None = None) -> Rollout:
        phase, how = self._phase, self.generation
        how = how if count is None else how.model_copy(update={"samples": count})
        key = ("sample", phase.repeat, phase.place, phase.iteration)
        return sample(phase, examples, how, key, phase.position)

    def logged(self, examples: Sequence[Example]) -> Rollout:
        return self._phase.logged.rollout(examples)

    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        return self._phase.outputs.score(model, rollout, want)

    def column(
        self, name: str, compute: Callable[[Rollout, Reward], Tensor], key: Sequence[str | int | float] = ()
    ) -> Tensor:
        phase, plan, data = self._phase, self._phase.plan, self._phase.workspace.data
        return phase.logged.column(
            name,
            compute,
            key,
            lambda: data.fingerprint(plan, phase.draw.data),
            lambda rollout: rewarded(phase, plan.training, rollout, plan.reward_columns),
        )

    def rng(self, *key: str | int) -> torch.Generator:
        return self._phase.rng(*key)

    def note(self, text: str) -> None:
        self._phase.workspace.display.note(text)

    def finish_phase(self, reason: str) -> None:
        self._phase.ending = reason
