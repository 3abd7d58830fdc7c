"""Cutting a batch: units that belong together, micro-batches under a token budget.

Rows are plain integers here: one copy from the device, and no wait for it afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlalign.data.rollout import Rollout

Rows = list[int]


def units(rollout: Rollout, unit: str) -> list[Rows]:
    """The rows of each smallest piece a loss may be evaluated on alone."""
    found: dict[int, Rows] = {}
    for row, number in enumerate(unit_of(rollout, unit).tolist()):
        found.setdefault(number, []).append(row)
    return [found[number] for number in sorted(found)]


def unit_of(rollout: Rollout, unit: str) -> Tensor:
    """[N]: the number of each row's unit."""
    if unit == "response":
        return torch.arange(len(rollout), device=rollout.group_N.device)
    return rollout.group_N if unit == "group" else torch.zeros_like(rollout.group_N)


def padded_cost(cost_N: Sequence[int], rows: Sequence[int]) -> int:
    """Tokens a model computes when it reads these rows side by side."""
    return max(map(cost_N.__getitem__, rows), default=0) * len(rows)


def fit(cost_N: Sequence[int], pieces: Sequence[Rows], budget: int) -> list[Rows]:
    """Pack pieces, longest first, so that no micro-batch exceeds the budget unless one piece alone does."""
    longest = [max(cost_N[row] for row in piece) for piece in pieces]
    packed: list[Rows] = []
    width = 0
    for p in sorted(range(len(pieces)), key=lambda p: -longest[p]):
        if packed and (len(packed[-1]) + len(pieces[p])) * width <= budget:
            packed[-1] += pieces[p]
        else:
            packed.append(list(pieces[p]))
            width = longest[p]
    return [sorted(rows) for rows in packed]


def micro_batches(rollout: Rollout, budget: int, unit: str = "response") -> list[Rows]:
    """Row sets of forward passes. Rows of one prompt stay together where they fit, which saves prompt work.

    A unit larger than the budget comes back alone and whole: its caller decides how to cut it.
    """
    cost_N = rollout.cost_N.tolist()
    if cost_N and max(cost_N) * len(cost_N) <= budget:
        return [list(range(len(cost_N)))]
    if unit != "response":
        return fit(cost_N, units(rollout, unit), budget)
    pieces: list[Rows] = []
    for group in units(rollout, "group"):
        pieces += [group] if padded_cost(cost_N, group) <= budget else [[row] for row in group]
    return fit(cost_N, pieces, budget)


def runs(sizes: Sequence[int], most: int) -> list[range] | None:
    """Runs of consecutive pieces of at most `most` in total; None where one piece alone is larger."""
    found: list[range] = []
    start, used = 0, 0
    for i, size in enumerate(sizes):
        if size > most:
            return None
        if used + size > most:
            found.append(range(start, i))
            start, used = i, 0
        used += size
    if sizes:
        found.append(range(start, len(sizes)))
    return found


def index(rows: Rows, like: Rollout) -> Tensor:
    """Rows as an index tensor on the rollout's device."""
    return torch.tensor(rows, dtype=torch.long, device=like.group_N.device)


def places_of(some: Tensor, among: Tensor, count: int) -> Tensor:
    """Where in `among`, numbers below `count`, one of `some` stands. `torch.isin` would sort both."""
    wanted = torch.zeros(count, dtype=torch.bool, device=among.device)
    wanted[some] = True
    return wanted[among].nonzero()[:, 0]
