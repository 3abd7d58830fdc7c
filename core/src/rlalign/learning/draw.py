"""Which examples an iteration gets: shuffled passes over the data, or draws by weight.

What is as long as large data lies in files that are mapped, and long passes are shuffled by a keyed permutation: a
process holds next to nothing of a hundred million rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from rlalign.data.example import Example, taken
from rlalign.data.ordering import ROUNDS, ordered, permuted
from rlalign.data.settings import Train
from rlalign.errors import CheckpointError, ConfigError, RLAlignError
from rlalign.randomness import Seeds

Kept = Callable[[str, Callable[[], Iterable[Tensor]]], Tensor]
"""Gives an array by its name (`order-….i8`), made of pieces where it is not there yet."""
Refuse = Callable[[Sequence[Example]], Mapping[int, str]]
"""Places of the examples that cannot be read, and why."""

LARGE = 2**20
"""Examples or responses from which on what is as long as the data is kept in files."""
KEYED = 2**24
"""Examples beyond which a pass is shuffled by a keyed permutation, which takes no memory."""
AT_ONCE = 2**18
"""Of a long array made at once."""
GIVE_UP = 10_000
"""Examples running that cannot be read."""


class Draw:
    """The draws of one phase. Its only running state is how many examples were drawn."""

    def __init__(
        self,
        data: Sequence[Example],
        seeds: Seeds,
        key: tuple[str | int, ...],
        *,
        keep: Kept | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        """`keep` is asked for arrays as long as large data; what `refuse` names is left out when it is drawn."""
        if len(data) == 0:
            raise ConfigError("the task has no training examples")
        self.data = data
        self.position = 0
        self.share = 1.0
        self.refuse = refuse
        self.left_out = 0
        """Examples left out by the last `next`."""
        self._seeds = seeds
        self._key = key
        self._keep = keep
        self._epoch: tuple[int, Tensor] | None = None
        self._starts: Tensor | None = None
        self._order = self._in_order()
        """Places in the data, in an order that depends on what stands there; None: as they stand."""
        self._rows: Tensor | None = None
        """All logged responses, in that order; for weights over them. None: as they stand."""
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
        sound = (bool((w[piece].isfinite() & (w[piece] >= 0)).all()) for piece in _pieces(size))
        if not all(sound):
            raise RLAlignError("draw weights must be finite and not negative")
        if float(w.sum()) <= 0:
            raise RLAlignError("all draw weights are zero: there is nothing to draw")
        if unit == "response":
            self._rows = self._rows_in_order()
        places = self._rows if unit == "response" else self._order
        self._weights = _hash(w.detach().cpu().double())
        name = f"weights-{self._weights[:16]}-{'' if places is None else _hash(places)[:16]}.f8"
        self._cumulative = self._kept(name, size, lambda: _cumulative(w, places))
        self._drawable = sum(int((w[piece] > 0).sum()) for piece in _pieces(size))
        self._unit = unit

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
        passes = Fraction(str(train.passes or 1))  # 1.1 is eleven tenths, whatever a float is
        return max(1, math.ceil(passes * size / train.prompts))

    def next(self, count: int) -> list[Example]:
        """The next examples that can be read. One drawn twice stands there twice."""
        found: list[Example] = []
        self.left_out = running = 0
        while len(found) < count:
            drawn = self._drawn(count - len(found))
            refused = {} if self.refuse is None else self.refuse(drawn)
            found += [example for i, example in enumerate(drawn) if i not in refused]
            self.left_out += len(refused)
            running = running + len(refused) if len(refused) == len(drawn) else 0
            if running >= GIVE_UP:
                i, why = next(iter(refused.items()))
                raise ConfigError(
                    f"{running:,} examples running cannot be read; the last is `{drawn[i].id}`: {why}"
                )
        return found

    def _drawn(self, count: int) -> list[Example]:
        first, self.position = self.position, self.position + count
        if self._cumulative is None:
            places = self._in_passes(first, count)
            return [self._placed(*found) for found in zip(places, taken(self.data, places), strict=True)]
        return [self._weighted(position) for position in range(first, first + count)]

    def _in_passes(self, position: int, count: int) -> list[int]:
        """Places in the data from a position of the shuffled passes on."""
        found: list[int] = []
        while len(found) < count:
            epoch, place = divmod(position + len(found), len(self.data))
            until = min(place + count - len(found), len(self.data))
            found += _at(self._order, self._shuffled(epoch, place, until)).tolist()
        return found

    def _weighted(self, position: int) -> Example:
        assert self._cumulative is not None
        generator = self._seeds.rng(*self._key, "weighted", position)
        target = torch.rand((), dtype=torch.float64, generator=generator) * self._cumulative[-1]
        index = int(torch.searchsorted(self._cumulative, target, right=True))
        index = min(index, len(self._cumulative) - 1)
        if self._unit == "example":
            place = index if self._order is None else int(self._order[index])
            return self._placed(place, self.data[place])
        return self._response(index if self._rows is None else int(self._rows[index]))

    def _shuffled(self, epoch: int, start: int, end: int) -> Tensor:
        """A piece of a shuffled pass."""
        generator = self._seeds.rng(*self._key, "shuffle", epoch)
        size = len(self.data)
        if size > KEYED:
            keys = torch.randint(2**63 - 1, (ROUNDS,), generator=generator).tolist()
            return torch.from_numpy(permuted(numpy.arange(start, end), size, keys))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, torch.randperm(size, generator=generator)
        return self._epoch[1][start:end]

    def _placed(self, index: int, example: Example) -> Example:
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
            counts = known if known is not None else numpy.array([len(e.responses) for e in self.data])
            name = "" if len(counts) < LARGE else f"starts-{_hash(counts)[:16]}.i8"
            self._starts = self._kept(name, len(counts), lambda: _starts(counts))
        return self._starts

    # -- arrays as long as the data ---------------------------------------------------------------

    def _in_order(self) -> Tensor | None:
        keys = getattr(self.data, "row_keys", None)
        if keys is None:
            return None
        name = "" if len(keys) < LARGE else f"order-{_hash(keys)[:16]}.i8"
        return self._kept(name, len(keys), lambda: map(torch.from_numpy, ordered(keys)))

    def _rows_in_order(self) -> Tensor | None:
        starts, order = self.row_starts(), self._order
        if order is None:
            return None
        size = int(starts[-1])
        name = "" if size < LARGE else f"rows-{_hash(starts)[:16]}-{_hash(order)[:16]}.i8"
        return self._kept(name, size, lambda: _rows_of(starts, order))

    def _kept(self, name: str, size: int, pieces: Callable[[], Iterable[Tensor]]) -> Tensor:
        if self._keep is None or size < LARGE:
            return torch.cat(list(pieces()))
        return self._keep(name, pieces)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "weights": self._weights, "share": self.share}

    def load_state_dict(self, state: dict[str, Any], *, changed: bool = False) -> None:
        """Take back what `state_dict` gave; `changed`: the pipeline has, and perhaps the weights with it."""
        if state["weights"] != self._weights and not changed:
            raise CheckpointError(
                "the draw's weights are not what they were before the run was interrupted: what a component "
                "sets in `phase_started` may depend on the data and on `run.column`, not on what it learned since"
            )
        self.position = int(state["position"])


def _at(order: Tensor | None, places: Tensor) -> Tensor:
    return places if order is None else order[places]


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, start + AT_ONCE) for start in range(0, size, AT_ONCE))


def _hash(values: Tensor | numpy.ndarray) -> str:
    array, digest = numpy.asarray(values), hashlib.sha256()
    for piece in _pieces(len(array)):
        digest.update(numpy.ascontiguousarray(array[piece]).data)
    return digest.hexdigest()


def _cumulative(w: Tensor, places: Tensor | None) -> Iterator[Tensor]:
    """Sums of the weights at these places, as they would come out in one go."""
    before: Tensor | float = 0.0
    for piece in _pieces(len(w)):
        some = w[piece] if places is None else w[places[piece]]
        some = some.detach().cpu().to(torch.float64, copy=True)
        some[0] += before
        sums = some.cumsum(0)
        before = sums[-1]
        yield sums


def _starts(counts: numpy.ndarray) -> Iterator[Tensor]:
    before = torch.zeros(1, dtype=torch.long)
    yield before
    for piece in _pieces(len(counts)):
        found = torch.from_numpy(numpy.asarray(counts[piece], dtype=numpy.int64)).cumsum(0) + before
        yield found
        before = found[-1:]


def _rows_of(starts: Tensor, order: Tensor) -> Iterator[Tensor]:
    """The responses of the examples at these places, one example after the other."""
    for piece in _pieces(len(order)):
        places = order[piece]
        first = starts[places]
        count = starts[places + 1] - first
        skipped = torch.repeat_interleave(first - (count.cumsum(0) - count), count)
        yield skipped + torch.arange(len(skipped))
