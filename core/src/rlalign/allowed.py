"""What a truncation (top-k, top-p, a constraint) left to choose from, step by step, kept small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack(mask_MV: Tensor) -> Tensor:
    """Eight choices a byte: [M,V] bool → [M,⌈V/8⌉] uint8."""
    padded = torch.nn.functional.pad(mask_MV, (0, -mask_MV.shape[-1] % 8))
    bytes_MB8 = padded.view(len(mask_MV), padded.shape[-1] // 8, 8).to(torch.uint8)
    return (bytes_MB8 * _BITS.to(mask_MV.device)).sum(-1, dtype=torch.uint8)


def unpack(bits_MB: Tensor, vocabulary: int) -> Tensor:
    """The inverse of `pack`."""
    spread_MB8 = bits_MB[..., None] & _BITS.to(bits_MB.device)
    return (spread_MB8 != 0).flatten(-2)[..., :vocabulary]


@dataclass(frozen=True, eq=False)
class _Row:
    """One response. `ids` (flat, ascending within a step, with `ends`) or `bits` [T,B], whichever is smaller."""

    bits_TB: Tensor | None
    ids: Tensor | None
    ends_T: Tensor | None

    @staticmethod
    def of(bits_TB: Tensor, vocabulary: int) -> _Row | None:
        mask_TV = unpack(bits_TB, vocabulary)
        if bool(mask_TV.all()):
            return None
        if 4 * int(mask_TV.sum()) + 8 * len(mask_TV) >= bits_TB.numel():
            return _Row(bits_TB, None, None)
        ids = mask_TV.nonzero()[:, 1].to(torch.int32)
        return _Row(None, ids, mask_TV.sum(1).cumsum(0))

    def __len__(self) -> int:
        held = self.bits_TB if self.bits_TB is not None else self.ends_T
        assert held is not None
        return len(held)

    def mask(self, steps: Tensor, vocabulary: int) -> Tensor:
        if self.bits_TB is not None:
            return unpack(self.bits_TB[steps], vocabulary)
        assert self.ids is not None and self.ends_T is not None
        mask_MV = torch.zeros(len(steps), vocabulary, dtype=torch.bool, device=self.ids.device)
        for m, t in enumerate(steps.tolist()):
            start = int(self.ends_T[t - 1]) if t else 0
            mask_MV[m, self.ids[start : int(self.ends_T[t])].long()] = True
        return mask_MV


@dataclass(frozen=True, eq=False)
class Allowed:
    """The allowed tokens of N responses; a row `None` was never narrowed."""

    vocabulary: int
    rows: tuple[_Row | None, ...]

    @staticmethod
    def of(vocabulary: int, bits: Sequence[Tensor | None]) -> Allowed:
        """From packed bits [T_i,⌈V/8⌉] per response."""
        return Allowed(vocabulary, tuple(None if b is None else _Row.of(b, vocabulary) for b in bits))

    @staticmethod
    def of_mask(allowed_NTV: Tensor) -> Allowed:
        """From a dense mask; for tests and small vocabularies."""
        return Allowed.of(allowed_NTV.shape[-1], [pack(row_TV) for row_TV in allowed_NTV])

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
        pieces: list[Tensor] = []
        rows, counts = row_M.unique_consecutive(return_counts=True)
        for i, steps in zip(rows.tolist(), step_M.split(counts.tolist()), strict=True):
            row = self.rows[i]
            if row is None:
                pieces.append(step_M.new_ones(len(steps), self.vocabulary, dtype=torch.bool))
            else:
                held = row.bits_TB if row.bits_TB is not None else row.ids
                assert held is not None
                pieces.append(row.mask(steps.to(held.device), self.vocabulary).to(step_M.device))
        if not pieces:
            return step_M.new_ones(0, self.vocabulary, dtype=torch.bool)
        return torch.cat(pieces)
