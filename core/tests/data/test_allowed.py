"""What a truncation left to choose from: packing, unpacking, taking, joining, the smaller representation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign.data.allowed import Allowed, _pack_by_multiplying, pack, unpack


def dense(random: torch.Generator, rows: int, steps: int, vocabulary: int, share: float) -> Tensor:
    return torch.rand(rows, steps, vocabulary, generator=random) < share


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_unpack_undoes_pack(rows: int, vocabulary: int, share: float, seed: int) -> None:
    mask = torch.rand(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) < share
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert bits.shape == (rows, -(-vocabulary // 8))
    assert torch.equal(unpack(bits, vocabulary), mask)
    assert torch.equal(_pack_by_multiplying(mask), bits)


@st.composite
def several(draw: st.DrawFn) -> tuple[int, list[Tensor | None]]:
    """A vocabulary and, for some responses, what each of their steps allowed; None was not narrowed."""
    vocabulary = draw(st.sampled_from([1, 7, 8, 9, 200, 1000]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows: list[Tensor | None] = []
    for _ in range(draw(st.integers(1, 6))):
        share = draw(st.sampled_from([None, 0.0, 0.002, 0.01, 0.05, 0.5, 1.0]))
        steps = draw(st.integers(1, 5))
        rows.append(None if share is None else dense(random, 1, steps, vocabulary, share)[0])
    return vocabulary, rows


def of(vocabulary: int, rows: list[Tensor | None]) -> Allowed:
    return Allowed.of(vocabulary, [None if row is None else pack(row) for row in rows])


def check(allowed: Allowed, rows: list[Tensor | None], random: torch.Generator) -> None:
    """Any (row, step) pairs, rows ascending, steps in any order and repeated."""
    assert len(allowed.rows) == len(rows)
    at: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        count = int(torch.randint(0, 6, (1,), generator=random))
        length = 5 if row is None else len(row)
        at += [(i, int(t)) for t in torch.randint(length, (count,), generator=random)]
    row_M, step_M = torch.tensor(at, dtype=torch.long).view(-1, 2).T
    mask_MV = allowed.mask(row_M, step_M)
    assert mask_MV.shape == (len(at), allowed.vocabulary)
    for mask_V, (i, t) in zip(mask_MV, at, strict=True):
        row = rows[i]
        assert torch.equal(mask_V, torch.ones_like(mask_V) if row is None else row[t])


@settings(max_examples=200, deadline=None)
@given(several(), several(), st.randoms(use_true_random=False))
def test_masks_come_back_through_take_and_concat(
    one: tuple[int, list[Tensor | None]], two: tuple[int, list[Tensor | None]], random: object
) -> None:
    generator = torch.Generator().manual_seed(random.randrange(2**31))  # type: ignore[attr-defined]
    vocabulary, rows = one
    allowed = of(vocabulary, rows)
    check(allowed, rows, generator)
    order = [random.randrange(len(rows)) for _ in range(random.randrange(8))]  # type: ignore[attr-defined]
    check(allowed.take(order), [rows[i] for i in order], generator)
    if two[0] == vocabulary:
        joined = Allowed.concat([(allowed, len(rows)), (None, 2), (of(*two), len(two[1]))])
        assert joined is not None
        check(joined, [*rows, None, None, *two[1]], generator)


@settings(max_examples=100, deadline=None)
@given(several())
def test_the_smaller_representation_is_kept(one: tuple[int, list[Tensor | None]]) -> None:
    vocabulary, rows = one
    for held, row in zip(of(vocabulary, rows).rows, rows, strict=True):
        if row is None or bool(row.all()):
            assert held is None
            continue
        assert held is not None
        as_bits, as_ids = len(row) * -(-vocabulary // 8), 4 * int(row.sum()) + 8 * len(row)
        parts = [x for x in (held.bits_TB, held.ids, held.ends_T) if x is not None]
        assert sum(x.numel() * x.element_size() for x in parts) <= min(as_bits, as_ids)
        assert len(held) == len(row)


def test_a_single_step_of_a_wide_vocabulary_stays_small() -> None:
    mask = torch.zeros(4, 50_000, dtype=torch.bool)
    mask[:, :40] = True
    (row,) = of(50_000, [mask]).rows
    assert row is not None
    assert row.bits_TB is None
    assert row.ids is not None
    assert row.ids.numel() == 160


def test_a_response_holds_its_own_and_nothing_more() -> None:
    """The rows a rollout hands over are pieces of one tensor; what is kept of it may not keep all of it."""
    whole = pack(torch.rand(20, 400, generator=torch.Generator().manual_seed(0)) < 0.5)
    for row, bits_TB in zip(Allowed.of(400, whole.split(5)).rows, whole.split(5), strict=True):
        assert row is not None and row.bits_TB is not None
        assert torch.equal(row.bits_TB, bits_TB)
        assert row.bits_TB.untyped_storage().nbytes() == row.bits_TB.numel()


def test_nothing_narrowed_stays_nothing() -> None:
    assert Allowed.concat([(None, 3), (None, 2)]) is None


def test_vocabularies_do_not_mix() -> None:
    one = Allowed.of_mask(torch.ones(1, 2, 8, dtype=torch.bool))
    two = Allowed.of_mask(torch.ones(1, 2, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"vocabularies of \[8, 9\] tokens"):
        Allowed.concat([(one, 1), (two, 1)])


def test_no_steps_give_an_empty_mask() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert Allowed.of_mask(torch.ones(2, 2, 9, dtype=torch.bool)).mask(none, none).shape == (0, 9)
