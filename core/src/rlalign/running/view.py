"""A phase in progress, and what its hooks see of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Outputs, Reward
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.errors import ComponentError
from rlalign.interface.component import Task
from rlalign.learning.draw import Draw
from rlalign.learning.learner import Learner
from rlalign.running.models import Models
from rlalign.running.phase import PhaseRun
from rlalign.running.wiring import Wiring
from rlalign.running.workspace import Workspace


def open_phase(workspace: Workspace, wiring: Wiring, repeat: int, place: int) -> PhaseRun:
    """A phase whose hooks see a read-only view of it."""
    phase = PhaseRun(workspace, wiring, repeat, place)
    phase.run = RunView(phase)
    return phase


class RunView:
    """A phase as its hooks see it: read-only. `Run` says what each member is for."""

    def __init__(self, phase: PhaseRun) -> None:
        object.__setattr__(self, "_phase", phase)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"run.{name} cannot be assigned; a component keeps its state on itself")

    _phase: PhaseRun

    # -- where the run stands -----------------------------------------------------------------------

    @property
    def phase(self) -> str:
        return self._phase.phase.name

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
        return self._phase.wiring.task

    @property
    def draw(self) -> Draw:
        return self._phase.draw

    @property
    def generation(self) -> Sampling:
        return self._phase.generation

    @property
    def position(self) -> int:
        return self._phase.offset

    # -- what it can do -----------------------------------------------------------------------------

    def sample(self, examples: Sequence[Example], count: int | None = None) -> Rollout:
        phase = self._phase
        how = phase.generation if count is None else phase.generation.model_copy(update={"samples": count})
        key = ("sample", phase.repeat, phase.place, phase.iteration)
        return phase.sample(examples, how, key, phase.offset)

    def logged(self, examples: Sequence[Example]) -> Rollout:
        return self._phase.logged(examples)

    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        return self._phase.score(model, rollout, want)

    def column(
        self, name: str, compute: Callable[[Rollout, Reward], Tensor], key: Sequence[str | int | float] = ()
    ) -> Tensor:
        return self._phase.column(name, compute, key)

    def rng(self, *key: str | int) -> torch.Generator:
        return self._phase.rng(*key)

    def note(self, text: str) -> None:
        self._phase.session.display.note(text)

    def finish_phase(self, reason: str) -> None:
        self._phase.ending = reason

    # -- inside `update` only -----------------------------------------------------------------------

    def loss(self, batch: Batch) -> float:
        return self._learner("loss").loss(batch)

    def gradient(self, batch: Batch) -> Tensor:
        return self._learner("gradient").gradient(batch)

    def fisher_product(self, batch: Batch, vector: Tensor) -> Tensor:
        return self._learner("fisher_product").fisher_product(batch, vector)

    def kl(self, batch: Batch, vector: Tensor) -> float:
        return self._learner("kl").kl(batch, vector)

    def parameters(self) -> Tensor:
        return self._learner("parameters").parameters()

    def assign(self, vector: Tensor) -> None:
        self._learner("assign").assign(vector)

    def learn(self, batch: Batch, only: Collection[str] | None = None) -> dict[str, float]:
        self._learner("learn")
        return self._phase.learn(batch.as_step(), only)

    def respond(self, examples: Sequence[Example]) -> tuple[Rollout, Reward]:
        self._learner("respond")
        return self._phase.respond(examples)

    def _learner(self, what: str) -> Learner:
        if self._phase.updating and self._phase.learner is not None:
            return self._phase.learner
        raise ComponentError(f"run.{what}() belongs into an `update` hook of a phase that trains something")
