"""Orders that take no memory: sorted piece by piece, and permutations computed place by place."""

from __future__ import annotations

from itertools import pairwise

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlalign.data.ordering import ordered, permuted

KEYS = [0x0123456789ABCDEF, 0x7FEDCBA987654321, 3, 2**62 + 5]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_pieces_are_the_order_of_all(keys: list[int], at_once: int) -> None:
    array = numpy.array(keys, dtype=numpy.uint64)
    pieces = list(ordered(array, at_once))
    assert numpy.concatenate(pieces).tolist() == numpy.argsort(array, kind="stable").tolist()
    for one, other in pairwise(pieces):
        assert not set(array[one].tolist()) & set(array[other].tolist())


def test_hashes_come_in_pieces_of_the_size_asked_for() -> None:
    keys = numpy.random.default_rng(0).integers(0, 2**64 - 1, 50_000, dtype=numpy.uint64)
    assert max(map(len, ordered(keys, 4_096))) < 5_000


def test_what_are_no_hashes_is_sorted_at_once() -> None:
    assert [p.tolist() for p in ordered(numpy.array([3, -1, 2]), 1)] == [[1, 2, 0]]


@given(st.integers(1, 3_000), st.lists(st.integers(0, 2**63 - 1), min_size=4, max_size=4))
def test_a_permutation_is_a_bijection(size: int, keys: list[int]) -> None:
    assert sorted(permuted(numpy.arange(size), size, keys).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 100_003])
def test_a_bijection_at_the_borders_however_it_is_cut(size: int) -> None:
    whole = permuted(numpy.arange(size), size, KEYS)
    assert numpy.bincount(whole, minlength=size).tolist() == [1] * size
    some = numpy.random.default_rng(0).integers(0, size, 1000)
    assert permuted(some, size, KEYS).tolist() == whole[some].tolist()


@pytest.mark.parametrize("size", [2**24 + 1, 10**8, 2**40])
def test_places_of_large_data_stay_apart_and_within(size: int) -> None:
    found = permuted(numpy.arange(size // 2, size // 2 + 200_000), size, KEYS)
    assert len(set(found.tolist())) == 200_000 and found.min() >= 0 and found.max() < size


def test_a_stretch_of_places_falls_anywhere_and_neighbours_part() -> None:
    """χ² of where a stretch lands, and of how far apart two neighbours do, against chance; two keys differ."""
    size, count, bins = 10**8, 100_000, 100
    one = permuted(numpy.arange(count), size, KEYS)
    other = permuted(numpy.arange(count), size, KEYS[::-1])
    apart = numpy.diff(one) % size
    for values in (one, other, apart, (one - other) % size):
        counted = numpy.bincount(values * bins // size, minlength=bins)
        chi2 = float(((counted - len(values) / bins) ** 2 / (len(values) / bins)).sum())
        assert chi2 < 160, chi2  # 99 degrees of freedom: p = 1e-4
