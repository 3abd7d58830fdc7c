"""What a hook sees of the run: where it stands, its models, and the few things it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlalign.errors import ComponentError
from rlalign.types import Batch, Example, Outputs, Reward, Rollout

if TYPE_CHECKING:
    from rlalign.component import Task
    from rlalign.draw import Draw
    from rlalign.learner import Learner
    from rlalign.models import Models
    from rlalign.phase import PhaseRun
    from rlalign.pipeline import Sampling


class Run:
    """Read-only. Each method says when it may be called."""

    def __init__(self, phase: PhaseRun) -> None:
        object.__setattr__(self, "_phase", phase)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"run.{name} cannot be assigned; a component keeps its state on itself")

    _phase: PhaseRun

    # -- where the run stands -----------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """The phase's name."""
        return self._phase.phase.name

    @property
    def iteration(self) -> int:
        """Iterations of this phase that are done."""
        return self._phase.iteration

    @property
    def step(self) -> int:
        """Optimiser steps of the whole run that are done."""
        return self._phase.step

    @property
    def progress(self) -> float:
        """The share of the phase that is done, in [0, 1]."""
        return self._phase.progress

    # -- what it is made of -------------------------------------------------------------------------

    @property
    def models(self) -> Models:
        """The models by name."""
        return self._phase.models

    @property
    def task(self) -> Task:
        """The phase's task."""
        return self._phase.wiring.task

    @property
    def draw(self) -> Draw:
        """The phase's draws: `weights` and `scale` belong into `phase_started`."""
        return self._phase.draw

    @property
    def generation(self) -> Sampling:
        """How responses are sampled."""
        return self._phase.generation

    # -- what it can do -----------------------------------------------------------------------------

    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        """Outputs of a model (those of `needs`) without a graph, each computed once."""
        return self._phase.score(model, rollout, want)

    def column(
        self, name: str, compute: Callable[[Rollout, Reward], Tensor], key: Sequence[str | int | float] = ()
    ) -> Tensor:
        """In `phase_started`: a value for every logged response of the data, [rows].

        `compute(rollout, reward) -> [N]` is called over all of it in pieces of whole groups; what it wants of a
        model it asks for by `score`, for only the columns that rewards read are there. From then on
        every logged rollout carries it as `columns[name]`. `key`: whatever else the values depend on.
        """
        return self._phase.column(name, compute, key)

    def rng(self, *key: str | int) -> torch.Generator:
        """A generator for this phase and key, the same whenever it is asked for."""
        return self._phase.rng(*key)

    def note(self, text: str) -> None:
        """A line for whoever watches the run: what was left out, and why."""
        self._phase.session.display.note(text)

    def finish_phase(self, reason: str) -> None:
        """End the phase after this iteration."""
        self._phase.ending = reason

    # -- inside `update` only -----------------------------------------------------------------------

    def loss(self, batch: Batch) -> float:
        """The weighted sum of all losses on a batch."""
        return self._learner("loss").loss(batch)

    def gradient(self, batch: Batch) -> Tensor:
        """Its gradient with regard to all trained parameters, as one vector."""
        return self._learner("gradient").gradient(batch)

    def accumulate(
        self, rollout: Rollout, compute: Callable[[Rollout, Sequence[Tensor]], float]
    ) -> tuple[float, Tensor]:
        """Σ compute(part, chunks) over parts of a rollout that fit the memory, and the gradient it left, as one vector.

        `chunks` are places among the part's chosen steps, as many at a time as the policy's head may compute.
        `compute` may call `.backward()`; it may be called again, from the first part on, where memory ran out.
        """
        return self._learner("accumulate").accumulate(rollout, compute)

    def parameters(self) -> Tensor:
        """All trained parameters as one vector."""
        return self._learner("parameters").parameters()

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector's pieces by parameter, `policy/…`, each in the parameter's shape."""
        return self._learner("split").split(vector)

    def assign(self, vector: Tensor) -> None:
        """Write a vector into the trained parameters."""
        self._learner("assign").assign(vector)

    def learn(self, batch: Batch, only: Collection[str] | None = None) -> dict[str, float]:
        """What the loop does without an `update`: epochs × minibatches of the losses, an optimiser step each.

        With `only`, the other trained models stay as they are, to the bit.
        """
        self._learner("learn")
        return self._phase.learn(batch.as_step(), only)

    def respond(self, examples: Sequence[Example]) -> tuple[Rollout, Reward]:
        """Fresh responses of the policy as it is now, and what they earn."""
        self._learner("respond")
        return self._phase.respond(examples)

    def _learner(self, what: str) -> Learner:
        if self._phase.updating and self._phase.learner is not None:
            return self._phase.learner
        raise ComponentError(f"run.{what}() belongs into an `update` hook of a phase that trains something")
