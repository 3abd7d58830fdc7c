"""What a truncation (top-k, top-p, a constraint) left to choose from, step by step, kept small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

# Eight choices are eight bytes of 0 or 1, and those an integer: one multiplication brings them together at its
# top, or spreads a byte over all eight. (The lowest byte is the first one, as on every machine torch runs on.)
_GATHER = 0x0102_0408_1020_4080
_SPREAD = 0x0101_0101_0101_0101
_EACH = 0x8040_2010_0804_0201 - (1 << 64)


def pack(mask_MV: Tensor) -> Tensor:
    """Eight choices a byte: [M,V] bool → [M,⌈V/8⌉] uint8."""
    if mask_MV.device.type != "cpu":
        return _pack_by_multiplying(mask_MV)
    return torch.from_numpy(numpy.packbits(mask_MV.numpy(), axis=1, bitorder="little"))


def _pack_by_multiplying(mask_MV: Tensor) -> Tensor:
    """The same on a GPU, where NumPy does not compute."""
    count, vocabulary = mask_MV.shape
    padded = mask_MV.new_zeros(count, -(-vocabulary // 8) * 8)
    padded[:, :vocabulary] = mask_MV
    return (padded.view(torch.int64) * _GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(bits_MB: Tensor, vocabulary: int) -> Tensor:
    """The inverse of `pack`."""
    spread = bits_MB.reshape(-1).to(torch.int64).mul_(_SPREAD).bitwise_and_(_EACH)
    return (spread.view(torch.uint8) != 0).view(len(bits_MB), 8 * bits_MB.shape[1])[:, :vocabulary]


_BITS = numpy.unpackbits(numpy.arange(256, dtype=numpy.uint8)[:, None], axis=1).sum(1).astype(numpy.int32)


def _count(bits_MB: Tensor) -> Tensor:
    """[M]: how many choices each row has."""
    return torch.from_numpy(numpy.take(_BITS, bits_MB.numpy()).sum(1))


@dataclass(frozen=True, eq=False)
class _Row:
    """One response. `ids` (flat, ascending within a step, with `ends`) or `bits` [T,B], whichever is smaller."""

    bits_TB: Tensor | None
    ids: Tensor | None
    ends_T: Tensor | None

    @staticmethod
    def of(bits_TB: Tensor, vocabulary: int) -> _Row | None:
        bits_TB = bits_TB.cpu()
        count_T = _count(bits_TB)
        total = int(count_T.sum())
        if total == len(bits_TB) * vocabulary:
            return None
        if 4 * total + 8 * len(bits_TB) >= bits_TB.numel():
            return _Row(bits_TB.clone(), None, None)  # not a view, which would hold all it is a view of
        step_K, byte_K = bits_TB.nonzero(as_tuple=True)  # few hold anything
        place_k, bit_k = unpack(bits_TB[step_K, byte_K][:, None], 8).nonzero(as_tuple=True)
        return _Row(None, (8 * byte_K[place_k] + bit_k).to(torch.int32), count_T.cumsum(0))

    def __len__(self) -> int:
        held = self.bits_TB if self.bits_TB is not None else self.ends_T
        assert held is not None
        return len(held)

    def chosen(self, steps_m: Tensor) -> tuple[Tensor, Tensor]:
        """(the ids of these steps one after the other, how many each has)."""
        assert self.ids is not None and self.ends_T is not None
        start_m = torch.where(steps_m > 0, self.ends_T[steps_m - 1], 0)
        count_m = self.ends_T[steps_m] - start_m
        shift_m = start_m - (count_m.cumsum(0) - count_m)
        return self.ids[torch.arange(int(count_m.sum())) + shift_m.repeat_interleave(count_m)], count_m


_PARTS = {"bits": "bits_TB", "ids": "ids", "ends": "ends_T"}
"""The fields of a row, in their order, by short names."""


@dataclass(frozen=True, eq=False)
class Allowed:
    """The allowed tokens of N responses; a row `None` was never narrowed."""

    vocabulary: int
    rows: tuple[_Row | None, ...]

    @staticmethod
    def of(vocabulary: int, bits: Iterable[Tensor | None]) -> Allowed:
        """From packed bits [T_i,⌈V/8⌉] per response."""
        return Allowed(vocabulary, tuple(None if b is None else _Row.of(b, vocabulary) for b in bits))

    @staticmethod
    def of_mask(allowed_NTV: Tensor) -> Allowed:
        """From a dense mask; for tests and small vocabularies."""
        return Allowed.of(allowed_NTV.shape[-1], [pack(row_TV) for row_TV in allowed_NTV])

    @staticmethod
    def of_tensors(vocabulary: int, count: int, tensors: Mapping[str, Tensor]) -> Allowed:
        """What `tensors` named, of `count` rows."""
        rows = [tuple(tensors.get(f"{i}.{part}") for part in _PARTS) for i in range(count)]
        return Allowed(vocabulary, tuple(_Row(*r) if any(x is not None for x in r) else None for r in rows))

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by row and part."""
        parts = (
            (i, part, getattr(row, field))
            for i, row in enumerate(self.rows)
            if row is not None
            for part, field in _PARTS.items()
        )
        return {f"{i}.{part}": x.cpu() for i, part, x in parts if x is not None}

    def take(self, rows: Sequence[int]) -> Allowed:
        return Allowed(self.vocabulary, tuple(self.rows[i] for i in rows))

    @staticmethod
    def concat(parts: Sequence[tuple[Allowed | None, int]]) -> Allowed | None:
        """Join the parts (each with its number of rows) in order."""
        sizes = {part.vocabulary for part, _ in parts if part is not None}
        if not sizes:
            return None
        if len(sizes) > 1:
            raise ValueError(f"cannot join responses over vocabularies of {sorted(sizes)} tokens")
        none: tuple[_Row | None, ...] = (None,)
        rows = (part.rows if part is not None else none * count for part, count in parts)
        return Allowed(sizes.pop(), tuple(row for group in rows for row in group))

    def mask(self, row_M: Tensor, step_M: Tensor) -> Tensor:
        """[M,V] bool for the given (response, step) pairs; `row_M` is ascending."""
        rows, counts = row_M.unique_consecutive(return_counts=True)
        bits_MB = torch.full((len(step_M), -(-self.vocabulary // 8)), 255, dtype=torch.uint8)
        place_K, id_K = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.int32)]
        at = 0
        for i, steps_m in zip(rows.tolist(), step_M.cpu().split(counts.tolist()), strict=True):
            row, here = self.rows[i], slice(at, at + len(steps_m))
            at += len(steps_m)
            if row is not None and row.bits_TB is not None:
                bits_MB[here] = row.bits_TB[steps_m]
            elif row is not None:
                ids, count_m = row.chosen(steps_m)
                bits_MB[here] = 0
                place_K.append(torch.arange(here.start, here.stop).repeat_interleave(count_m))
                id_K.append(ids)
        if len(id_K) > 1 and not bool(bits_MB.any()):  # spares unpacking nothing
            mask_MV = step_M.new_zeros(len(step_M), self.vocabulary, dtype=torch.bool)
        else:
            mask_MV = unpack(bits_MB.to(step_M.device), self.vocabulary)
        place, token = torch.cat(place_K).to(step_M.device), torch.cat(id_K).to(step_M.device).long()
        mask_MV[place, token] = True
        return mask_MV
