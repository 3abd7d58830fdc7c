"""Cutting a batch: units that belong together, micro-batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlalign.types import Rollout


def units(rollout: Rollout, unit: str) -> list[Tensor]:
    """The rows of each smallest piece a loss may be evaluated on alone."""
    rows = torch.arange(len(rollout), device=rollout.group_N.device)
    if unit == "step":
        return [rows]
    if unit == "response":
        return list(rows.split(1))
    order = rollout.row_order()
    counts = torch.bincount(rollout.group_N, minlength=len(rollout.examples))
    return [piece.sort().values for piece in order.split(counts[counts > 0].tolist())]


def padded_cost(rollout: Rollout, rows: Tensor) -> int:
    """Tokens a model computes when it reads these rows side by side."""
    return int(rollout.cost_N[rows].max()) * len(rows) if len(rows) else 0


def fit(rollout: Rollout, pieces: Sequence[Tensor], budget: int) -> list[Tensor]:
    """Pack pieces, longest first, so that no micro-batch exceeds the budget unless one piece alone does."""
    cost_N = rollout.cost_N.tolist()
    longest = [max(cost_N[i] for i in piece.tolist()) for piece in pieces]
    packed: list[list[Tensor]] = []
    used, width = 0, 0
    for p in sorted(range(len(pieces)), key=lambda p: -longest[p]):
        rows = len(pieces[p])
        if packed and (used + rows) * max(width, longest[p]) <= budget:
            packed[-1].append(pieces[p])
            used += rows
        else:
            packed.append([pieces[p]])
            used, width = rows, longest[p]
    return [torch.cat(piece).sort().values for piece in packed]


def micro_batches(rollout: Rollout, budget: int, unit: str = "response") -> list[Tensor]:
    """Row sets of forward passes. Rows of one prompt stay together where they fit, which saves prompt work.

    A unit larger than the budget comes back alone and whole: its caller decides how to cut it.
    """
    if unit != "response":
        return fit(rollout, units(rollout, unit), budget)
    pieces: list[Tensor] = []
    for group in units(rollout, "group"):
        pieces += [group] if padded_cost(rollout, group) <= budget else list(group.split(1))
    return fit(rollout, pieces, budget)


def chunks(sizes: Sequence[int], most: int) -> list[range] | None:
    """Runs of consecutive pieces of at most `most` in total; None where one piece alone is larger."""
    runs: list[range] = []
    start, used = 0, 0
    for i, size in enumerate(sizes):
        if size > most:
            return None
        if used + size > most:
            runs.append(range(start, i))
            start, used = i, 0
        used += size
    if sizes:
        runs.append(range(start, len(sizes)))
    return runs
