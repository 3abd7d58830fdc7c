"""Bytes a device, part by part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlalign.costs import memory
from rlalign.costs.machines import GIB, parse
from rlalign.costs.memory import Bytes
from rlalign.costs.shape import Shape, Work

N = 7_000_000_000
OF = Shape(
    weights=N, learned=N, adapters=N // 200, prompt=N, response=N, head=0, layers=28, width=3584, vocabulary=152_064,
    cache=28_672, block=N // 28, kept=1_000_000,
)  # fmt: skip
WORK = Work(128, 8, 256, 512, 1024, dtype="float32")


def taken(of: Shape = OF, work: Work = WORK, machine: str = "8xH100", **how: Any) -> Bytes:
    return memory.taken(of, work, parse(machine), **({"tokens": 4096, "chunk": 2048, "rows": 128} | how))


def test_weights_gradients_and_moments() -> None:
    """16 bytes a weight in float32, and 18 with float32 masters of bfloat16."""
    found = taken()
    assert found.weights + found.gradients + found.optimiser == 16 * N
    half = taken(work=replace(WORK, dtype="bfloat16", held=2))
    assert half.weights + half.gradients + half.optimiser == 18 * N
    assert half.half == 0
    assert found.activations == 4096 * 1_000_000
    assert found.logits == 4 * 4 * 2048 * 152_064


def test_shards_divide_what_is_kept() -> None:
    """16N/8 = 13 GiB of 7B; to sample weights are put together, and cast as whole ones are."""
    found = taken(work=replace(WORK, dtype="bfloat16"), shares=8)
    assert (found.weights + found.gradients + found.optimiser) / GIB == pytest.approx(16 * 7e9 / 8 / GIB)
    assert found.sampler == (4 + 2) * N
    assert found.learning < taken(work=replace(WORK, dtype="bfloat16")).learning / 4
    assert found.most == max(found.learning, found.sampling)


def test_adapters_need_neither_gradients_nor_moments_of_the_rest() -> None:
    """But a copy of all weights with the adapters in it, to sample from."""
    found = taken(replace(OF, learned=OF.adapters))
    assert found.gradients + found.optimiser == 12 * OF.adapters
    assert found.half == 4 * N


def test_recomputing_leaves_what_layers_read() -> None:
    again = taken(work=replace(WORK, recompute=True))
    assert again.activations == pytest.approx(4096 * (4 * 28 * 3584 + 1_000_000 / 28), rel=1e-6)


def test_as_many_rows_as_fit() -> None:
    each = memory.row_bytes(OF, 1280, 2)
    assert each == 2 * 28_672 * (1280 + memory.ROOM) + 4 * 4 * OF.vocabulary
    half = replace(WORK, dtype="bfloat16")
    assert memory.rows_at_once(OF, half, parse("H100"), 0.9 * 79.1 * GIB - 10.5 * each, most=128) == 10
    assert memory.rows_at_once(OF, half, parse("H100"), 100 * GIB, most=128) == 0
    assert memory.rows_at_once(OF, half, parse("H100"), 0, most=128) == 128
    assert memory.rows_at_once(OF, half, parse("H100"), 0, most=10**6) == int(79.1 * GIB / 4 / each)
