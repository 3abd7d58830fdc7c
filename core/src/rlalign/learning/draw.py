"""Which examples an iteration gets: shuffled passes over the data, or draws by weight."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from rlalign.data.example import Example
from rlalign.data.settings import Train
from rlalign.errors import CheckpointError, ConfigError, RLAlignError
from rlalign.randomness import Seeds


class Draw:
    """The draws of one phase. Its only running state is how many examples were drawn."""

    def __init__(self, data: Sequence[Example], seeds: Seeds, key: tuple[str | int, ...]) -> None:
        if len(data) == 0:
            raise ConfigError("the task has no training examples")
        self.data = data
        self.position = 0
        self.share = 1.0
        self._seeds = seeds
        self._key = key
        self._epoch: tuple[int, Tensor] | None = None
        self._starts: Tensor | None = None
        self._order = _order(data)
        self._rows = torch.empty(0, dtype=torch.long)
        """All logged responses, in that order; for weights over them."""
        self._cumulative: Tensor | None = None
        self._drawable = 0
        self._unit: Literal["response", "example"] = "example"
        self._weights: str | None = None
        """A hash of the weights."""

    # -- what a component may ask -------------------------------------------------------------------

    def weights(self, w: Tensor, unit: Literal["response", "example"] = "response") -> None:
        """Draw with replacement in proportion to `w`: logged responses, each a group of one, or whole examples.

        A pass is then as many draws as there are weights above zero.
        """
        size = int(self.row_starts()[-1]) if unit == "response" else len(self.data)
        if w.shape != (size,):
            raise RLAlignError(f"draw weights over {size} {unit}s have the shape {tuple(w.shape)}")
        if not bool(w.isfinite().all()) or bool((w < 0).any()):
            raise RLAlignError("draw weights must be finite and not negative")
        if float(w.sum()) <= 0:
            raise RLAlignError("all draw weights are zero: there is nothing to draw")
        if unit == "response":
            self._rows = self._rows_in_order()
        self._cumulative = w.double()[self._rows if unit == "response" else self._order].cumsum(0)
        self._drawable = int((w > 0).sum())
        self._unit = unit
        self._weights = hashlib.sha256(w.detach().cpu().double().numpy().tobytes()).hexdigest()

    def scale(self, share: float) -> None:
        """Multiply `train.iterations`, for example by the share of the data that is kept."""
        if not 0 < share < math.inf:
            raise RLAlignError(f"draw.scale({share}): a share is positive and finite")
        self.share = share

    # -- what the loop asks -----------------------------------------------------------------------

    def planned(self, train: Train) -> int:
        """Iterations of the phase."""
        if train.iterations is not None:
            return max(1, round(train.iterations * self.share))
        size = len(self.data) if self._cumulative is None else self._drawable
        return max(1, math.ceil((train.passes or 1.0) * size / train.prompts))

    def next(self, count: int) -> list[Example]:
        """The next examples. One drawn twice stands there twice."""
        first, self.position = self.position, self.position + count
        if self._cumulative is None:
            return [self._example(index) for index in self._in_passes(first, count)]
        return [self._weighted(position) for position in range(first, first + count)]

    def _in_passes(self, position: int, count: int) -> list[int]:
        """Places in the data from a position of the shuffled passes on."""
        found: list[int] = []
        while len(found) < count:
            epoch, place = divmod(position + len(found), len(self.data))
            found += self._order[self._shuffled(epoch)[place : place + count - len(found)]].tolist()
        return found

    def _weighted(self, position: int) -> Example:
        assert self._cumulative is not None
        generator = self._seeds.rng(*self._key, "weighted", position)
        target = torch.rand((), dtype=torch.float64, generator=generator) * self._cumulative[-1]
        index = int(torch.searchsorted(self._cumulative, target, right=True))
        index = min(index, len(self._cumulative) - 1)
        if self._unit == "example":
            return self._example(int(self._order[index]))
        return self._response(int(self._rows[index]))

    def _shuffled(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = self._seeds.rng(*self._key, "shuffle", epoch)
            self._epoch = epoch, torch.randperm(len(self.data), generator=generator)
        return self._epoch[1]

    def _example(self, index: int) -> Example:
        example = self.data[index]
        return example if self._starts is None else replace(example, row=int(self._starts[index]))

    def _response(self, row: int) -> Example:
        starts = self.row_starts()
        index = int(torch.searchsorted(starts, row, right=True)) - 1
        example, j = self.data[index], row - int(starts[index])
        return replace(
            example,
            responses=example.responses[j : j + 1],
            scores=example.scores[j : j + 1],
            finished=example.finished[j : j + 1],
            row=row,
        )

    def row_starts(self) -> Tensor:
        """[examples+1]: where each example's responses begin among all logged responses."""
        if self._starts is None:
            known = getattr(self.data, "response_counts", None)
            found = [len(example.responses) for example in self.data] if known is None else known.tolist()
            counts = torch.tensor(found, dtype=torch.long)
            self._starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        return self._starts

    def _rows_in_order(self) -> Tensor:
        starts = self.row_starts()
        count = starts.diff()[self._order]
        before = count.cumsum(0) - count
        first = torch.repeat_interleave(starts[self._order] - before, count)
        return first + torch.arange(len(first))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any], *, changed: bool = False) -> None:
        """Take back what `state_dict` gave; `changed`: the pipeline has, and perhaps the weights with it."""
        if state["weights"] != self._weights and not changed:
            raise CheckpointError(
                "the draw's weights are not what they were before the run was interrupted: what a component "
                "sets in `phase_started` may depend on the data and on `run.column`, not on what it learned since"
            )
        self.position = int(state["position"])


def _order(data: Sequence[Example]) -> Tensor:
    """Places in the data, in an order that depends on what stands there where the data can say so."""
    keys = getattr(data, "row_keys", None)
    if keys is None:
        return torch.arange(len(data))
    return torch.from_numpy(numpy.argsort(keys, kind="stable"))
