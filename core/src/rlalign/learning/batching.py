"""Cutting a batch: units that belong together, micro-batches under a token budget.

Rows are plain integers here: one copy from the device, and no wait for it afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Block:
    """Rows that a model reads side by side, padded to the longest of them."""

    rows: Rows
    groups: frozenset[int]
    prompt: int
    response: int
    longest: int
    once: bool
    """Whether the model computes a prompt once for all its rows, where that is less."""

    @property
    def cost(self) -> int:
        """Tokens that the model computes, padding included."""
        apart = len(self.rows) * self.longest
        shared = len(self.groups) * self.prompt + len(self.rows) * self.response
        return min(apart, shared) if self.once else apart

    def with_(self, other: Block) -> Block:
        """Both side by side."""
        return Block(
            self.rows + other.rows,
            self.groups | other.groups,
            max(self.prompt, other.prompt),
            max(self.response, other.response),
            max(self.longest, other.longest),
            self.once,
        )


def blocks(rollout: Rollout, pieces: Sequence[Rows], *, once: bool) -> list[Block]:
    """Each piece's rows side by side."""
    group_N, response_N = rollout.group_N.tolist(), rollout.length_N.tolist()
    prompt_G = list(map(Tensor.numel, rollout.inputs))

    def block(rows: Rows) -> Block:
        sizes = [(prompt_G[group_N[row]], response_N[row]) for row in rows]
        return Block(
            rows,
            frozenset(group_N[row] for row in rows),
            max(prompt for prompt, _ in sizes),
            max(response for _, response in sizes),
            max(prompt + response for prompt, response in sizes),
            once,
        )

    return [block(rows) for rows in pieces]


def fit(pieces: Sequence[Block], budget: int) -> list[Block]:
    """Pack pieces, longest first, so that no micro-batch exceeds the budget unless one piece alone does."""
    packed: list[Block] = []
    for piece in sorted(pieces, key=lambda piece: -piece.longest):
        joined = packed[-1].with_(piece) if packed else piece
        if packed and joined.cost <= budget:
            packed[-1] = joined
        else:
            packed.append(piece)
    return [replace(block, rows=sorted(block.rows)) for block in packed]


def micro_batches(
    rollout: Rollout, budget: int, unit: str = "response", *, once: bool = False
) -> list[Block]:
    """The forward passes. Rows of one prompt stay together where they fit, which saves prompt work.

    A unit larger than the budget comes back alone and whole: its caller decides how to cut it.
    """
    if len(rollout) == 0:
        return []
    whole = blocks(rollout, [list(range(len(rollout)))], once=once)
    if whole[0].cost <= budget:
        return whole
    if unit != "response":
        return fit(blocks(rollout, units(rollout, unit), once=once), budget)
    pieces: list[Block] = []
    for group in blocks(rollout, units(rollout, "group"), once=once):
        apart = [group] if group.cost <= budget else blocks(rollout, [[row] for row in group.rows], once=once)
        pieces += apart
    return fit(pieces, budget)


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
