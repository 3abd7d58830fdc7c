"""What hooks are given: the run, where it stands and what may be asked of it, and in `update` a learner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Outputs, Reward, Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.interface.policy import ModelMap


class Draws(Protocol):
    """Which examples an iteration gets."""

    def weights(self, w: Tensor, unit: Literal["response", "example"] = "response") -> None:
        """Draw with replacement in proportion to `w`."""

    def scale(self, share: float) -> None:
        """Multiply `train.iterations`."""

    def row_starts(self) -> Tensor:
        """[examples+1]: where each example's responses begin among all logged responses."""


class Examples(Protocol):
    """Where examples come from, and how a response to them reads: a `Task`."""

    name: str

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split, in a fixed order."""

    def postprocess(self, text: str) -> str:
        """What rewards and metrics read of a response."""


class Run(Protocol):
    """Read-only. Each method says when it may be called."""

    # -- which run, and where it stands -------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The run's folder, of the run's name; in `rlalign eval` and `sample` a temporary one."""

    @property
    def pipeline(self) -> dict[str, Any]:
        """What `pipeline.yaml` says, a copy: what came from the environment as `${oc.env:…}`."""

    @property
    def phase(self) -> str:
        """The phase's name."""

    @property
    def repeat(self) -> int:
        """How often the pipeline's phases were gone through before (`repeat`)."""

    @property
    def iteration(self) -> int:
        """Iterations of this phase that are done."""

    @property
    def step(self) -> int:
        """Optimiser steps of the whole run that are done."""

    @property
    def tick(self) -> int:
        """Iterations of the whole run that are done, all phases together: the axis of its curves."""

    @property
    def progress(self) -> float:
        """The share of the phase that is done, in [0, 1]."""

    # -- what it is made of -------------------------------------------------------------------------

    @property
    def models(self) -> ModelMap:
        """The models by name."""

    @property
    def task(self) -> Examples:
        """The phase's task."""

    @property
    def draw(self) -> Draws:
        """The phase's draws: `weights` and `scale` belong into `phase_started`."""

    @property
    def generation(self) -> Sampling:
        """How responses are sampled."""

    @property
    def position(self) -> int:
        """Where the present examples stand in the iteration's draw."""

    # -- what it can do -----------------------------------------------------------------------------

    def sample(self, examples: Sequence[Example], count: int | None = None) -> Rollout:
        """In `rollout`: the policy's responses, `count` to each example or as many as `generation` says."""

    def logged(self, examples: Sequence[Example]) -> Rollout:
        """In `rollout`: the examples' logged responses, with stored scores and columns."""

    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        """Outputs of a model (`logprobs`, `full_logprobs`, `entropy`, `values`) without graph, each computed once."""

    def column(
        self, name: str, compute: Callable[[Rollout, Reward], Tensor], key: Sequence[str | int | float] = ()
    ) -> Tensor:
        """In `phase_started`: a value for every logged response of the data, [rows].

        `compute(rollout, reward) -> [N]` is called over all of it in pieces of whole groups; what it wants of a
        model it asks for by `score`, for only the columns that rewards read are there. From then on
        every logged rollout carries it as `columns[name]`. `key`: whatever else the values depend on.
        """

    def scores_above(self, rollout: Rollout) -> list[Score]:
        """In a wrapper of `reward`: what the items above it say of other responses, whole groups of them."""

    def rng(self, *key: str | int) -> torch.Generator:
        """A generator for this phase and key, the same whenever it is asked for."""

    def note(self, text: str) -> None:
        """A line for whoever watches the run: what was left out, and why."""

    def finish_phase(self, reason: str) -> None:
        """End the phase after this iteration."""


class Learner(Protocol):
    """What an `update` hook learns with: it may be used until the hook returns."""

    def loss(self, batch: Batch) -> float:
        """The weighted sum of all losses on a batch."""

    def gradient(self, batch: Batch) -> Tensor:
        """Its gradient with regard to all trained parameters, as one vector."""

    def accumulate(
        self, rollout: Rollout, compute: Callable[[Rollout, Sequence[Tensor]], float]
    ) -> tuple[float, Tensor]:
        """Σ compute(part, chunks) over parts of a rollout that fit the memory, and the gradient it left, as one vector.

        `chunks` are places among the part's chosen steps, as many at a time as the policy's head may compute.
        `compute` may call `.backward()`; it may be called again, from the first part on, where memory ran out.
        """

    def parameters(self) -> Tensor:
        """All trained parameters as one vector."""

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector's pieces by parameter, `policy/…`, each in the parameter's shape."""

    def assign(self, vector: Tensor) -> None:
        """Write a vector into the trained parameters."""

    def learn(self, batch: Batch, only: Collection[str] | None = None) -> dict[str, float]:
        """What the loop does without an `update`: epochs × minibatches of the losses, an optimiser step each.

        With `only`, the other trained models stay as they are, to the bit.
        """

    def respond(self, examples: Sequence[Example]) -> tuple[Rollout, Reward]:
        """Fresh responses of the policy as it is now, and what they earn."""
