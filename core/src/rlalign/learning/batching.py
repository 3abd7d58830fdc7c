"""Cutting a batch: units that belong together, micro-batches under a token budget.

Rows are plain integers here: one copy from the device, and no wait for it afterwards.
"""

from __future__ import annotations

import math
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
    prompts: dict[int, int]
    """How long the prompt of each of their groups is."""
    responses: int
    """Tokens of all responses."""
    apart: int
    """The same with its prompt before each."""
    response: int
    """The longest."""
    longest: int
    """The same with its prompt."""
    once: bool
    """Whether the model computes a prompt once for all its rows, where that is less."""

    @property
    def cost(self) -> int:
        """Tokens that the model computes, padding included."""
        apart = len(self.rows) * self.longest
        shared = len(self.prompts) * max(self.prompts.values()) + len(self.rows) * self.response
        return min(apart, shared) if self.once else apart

    @property
    def padding(self) -> int:
        """How many of them are none of its own."""
        shared = sum(self.prompts.values()) + self.responses
        return self.cost - (min(self.apart, shared) if self.once else self.apart)

    def beside(self, other: Block) -> Block:
        """Both side by side."""
        return Block(
            self.rows + other.rows,
            self.prompts | other.prompts,
            self.responses + other.responses,
            self.apart + other.apart,
            max(self.response, other.response),
            max(self.longest, other.longest),
            self.once,
        )


def blocks(rollout: Rollout, pieces: Sequence[Rows], *, once: bool) -> list[Block]:
    """Each piece's rows side by side."""
    group_N, response_N = rollout.group_N.tolist(), rollout.length_N.tolist()
    prompt_G = list(map(Tensor.numel, rollout.inputs))

    def block(rows: Rows) -> Block:
        prompts = [prompt_G[group_N[row]] for row in rows]
        responses = [response_N[row] for row in rows]
        whole = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        groups = dict(zip([group_N[row] for row in rows], prompts, strict=True))
        return Block(rows, groups, sum(responses), sum(whole), max(responses), max(whole), once)

    return [block(rows) for rows in pieces]


def fit(pieces: Sequence[Block], budget: int, padding: float) -> list[Block]:
    """Pack pieces, longest first: no micro-batch exceeds the budget, or adds more padding, unless one piece does."""
    packed: list[Block] = []
    allowed = padding
    for piece in sorted(pieces, key=lambda piece: -piece.longest):
        joined = packed[-1].beside(piece) if packed else piece
        if packed and joined.cost <= budget and joined.padding <= allowed + piece.padding:
            packed[-1] = joined
            allowed += piece.padding
        else:
            packed.append(piece)
            allowed = padding + piece.padding
    return [replace(block, rows=sorted(block.rows)) for block in packed]


PASS = {"cpu": 256}
"""What a forward pass and its backward cost beside their tokens, in tokens, by device."""
PASS_ELSEWHERE = 8192


def micro_batches(
    rollout: Rollout, budget: int, unit: str = "response", *, once: bool = False
) -> list[Block]:
    """The forward passes, sorted by length where that spares more padding than it adds passes.

    Rows of one prompt stay together where they fit, which saves prompt work. A unit larger than the budget comes back
    alone and whole: its caller decides how to cut it.
    """
    if len(rollout) == 0:
        return []
    a_pass = PASS.get(rollout.group_N.device.type, PASS_ELSEWHERE)
    (whole,) = blocks(rollout, [list(range(len(rollout)))], once=once)
    if whole.cost <= budget and whole.padding <= a_pass:
        return [whole]
    ways = [blocks(rollout, units(rollout, unit), once=once)]
    if unit == "response":
        rows, groups = ways[0], blocks(rollout, units(rollout, "group"), once=once)
        kept = [group for group in groups if group.cost <= budget]
        alone = set(range(len(rollout))).difference(*(group.rows for group in kept))
        ways.insert(0, kept + [rows[row] for row in sorted(alone)])
    packed = [fit(pieces, budget, padding) for pieces in ways for padding in (a_pass, math.inf)]
    return min(packed, key=lambda found: sum(block.cost + a_pass for block in found))


ROOM = 1.1
"""How much larger than an even share a micro-batch may be: pieces seldom fill one."""


def dealt(
    rollout: Rollout, budget: int, unit: str = "response", *, once: bool = False, ranks: int = 1
) -> list[Block]:
    """`micro_batches`, every so many of them a rank's.

    Each rank has one at least where there are units enough, and as much to do as another, as far as they can be cut.
    """
    cuts = micro_batches(rollout, budget, unit, once=once)
    if ranks == 1 or not cuts:
        return cuts
    total = sum(block.cost for block in cuts)
    if len(cuts) < ranks:
        least = min(ranks, int(unit_of(rollout, unit).unique().numel()))
        budget = min(budget, total // ranks)
        while len(cuts := micro_batches(rollout, max(1, budget), unit, once=once)) < least:
            budget = budget * 3 // 4
    ways = [cuts]
    if rest := len(cuts) % ranks:
        even = int(ROOM * total / (len(cuts) - rest + ranks))
        ways.append(micro_batches(rollout, max(1, min(budget, even)), unit, once=once))
    a_pass = PASS.get(rollout.group_N.device.type, PASS_ELSEWHERE)

    def longest(found: Sequence[Block]) -> int:
        return max(sum(block.cost + a_pass for block in found[rank::ranks]) for rank in range(ranks))

    return min((_in_rounds(way, ranks) for way in ways), key=longest)


def _in_rounds(cuts: Sequence[Block], ranks: int) -> list[Block]:
    """The largest first, one to each rank; who has the largest of a round has the smallest of the next."""
    order = sorted(cuts, key=lambda block: -block.cost)
    rounds = [order[start : start + ranks] for start in range(0, len(order), ranks)]
    # From the end: in the last round the first ranks may be the only ones.
    turned = [found[::-1] if i % 2 else found for i, found in enumerate(reversed(rounds))]
    return [block for found in reversed(turned) for block in found]


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
