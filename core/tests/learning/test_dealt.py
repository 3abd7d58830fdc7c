"""Micro-batches are dealt out so that no rank waits long for another."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from rlalign import Example, Rollout
from rlalign.data.rollout import logged_rollout
from rlalign.learning import batching


def responses(lengths: list[int], group: int, prompt: int = 8) -> Rollout:
    """Groups of so many, of which each response is as long as is said."""
    groups = [lengths[i : i + group] for i in range(0, len(lengths), group)]
    examples = [Example(str(i), "x", responses=("y",) * len(some)) for i, some in enumerate(groups)]
    prompts: list[Tensor] = [torch.ones(prompt, dtype=torch.long)] * len(groups)
    return logged_rollout(examples, prompts, [([1] * n, True) for n in lengths], like=torch.zeros(1))


def longest(cuts: list[batching.Block], ranks: int) -> int:
    return max(sum(block.cost for block in cuts[rank::ranks]) for rank in range(ranks))


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("unit", ["response", "group"])
def test_nobody_has_much_more_to_do_than_the_others(unit: str, once: bool) -> None:
    rng = random.Random(7)
    before = after = 0.0
    for _ in range(60):
        group, ranks = rng.choice([1, 2, 4]), rng.choice([2, 3, 4, 8])
        lengths = [rng.randint(1, 300) for _ in range(group * rng.randint(ranks, 12 * ranks))]
        rollout, budget = responses(lengths, group), rng.choice([700, 2000, 5000])
        plain = batching.micro_batches(rollout, budget, unit, once=once)
        cuts = batching.dealt(rollout, budget, unit, once=once, ranks=ranks)
        assert sorted(row for block in cuts for row in block.rows) == [*range(len(rollout))]
        units = batching.units(rollout, unit)
        assert all(
            len({n for n, rows in enumerate(units) if row in rows}) == 1 for row in range(len(rollout))
        )
        largest = max(block.cost for block in batching.blocks(rollout, units, once=once))
        assert all(block.cost <= max(budget, largest) for block in cuts)
        if len(plain) >= ranks:
            before += longest(plain, ranks) * ranks / sum(block.cost for block in plain)
            after += longest(cuts, ranks) * ranks / sum(block.cost for block in plain)
            assert longest(cuts, ranks) <= longest(plain, ranks) * 1.02 + 256 * len(cuts)
    assert after < 0.9 * before


@pytest.mark.parametrize("count", [5, 8])
def test_who_has_the_largest_has_the_smallest_next(count: int) -> None:
    rows = [[row] for row in range(count)]
    single = batching.blocks(responses([90, 10, 80, 20, 70, 30, 60, 40][:count], 1), rows, once=False)
    cuts = batching._in_rounds(single, 2)
    lengths = [[block.response for block in cuts[rank::2]] for rank in range(2)]
    assert lengths == {5: [[90, 20, 10], [80, 70]], 8: [[80, 70, 30, 20], [90, 60, 40, 10]]}[count]


def test_five_equal_ones_are_cut_for_four() -> None:
    rollout = responses([50] * 40, 1)
    assert [len(block.rows) for block in batching.micro_batches(rollout, 8 * 58)] == [8] * 5
    cuts = batching.dealt(rollout, 8 * 58, ranks=4)
    assert [sum(len(block.rows) for block in cuts[rank::4]) for rank in range(4)] == [10] * 4


def test_alone_nothing_is_changed() -> None:
    rollout = responses([10, 200, 30, 150, 70, 5], 2)
    assert batching.dealt(rollout, 300, "group") == batching.micro_batches(rollout, 300, "group")
