"""Truncation: top-k, top-p and min-p keep what sorting a list keeps, whatever way finds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign.builtin.nucleus import Nucleus
from rlalign.data.settings import Sampling
from rlalign.decoding import nucleus as found_by
from rlalign.decoding.nucleus import nucleus
from rlalign.decoding.truncation import truncate
from rlalign.testing import Logits

from .sampled_plainly import reference

V = 11


levels = st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 2.0, 2.0, 5.0])
continuous = st.floats(-8, 8)


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.lists(levels, min_size=V, max_size=V), st.lists(continuous, min_size=V, max_size=V)),
    st.integers(0, V + 2),
    st.sampled_from([0.013, 0.31, 0.71, 0.93, 1.0]),
    st.sampled_from([0.0, 0.0123, 0.21, 0.99]),
)
def test_truncation_equals_sorting_a_list(logits: list[float], k: int, p: float, m: float) -> None:
    logits = logits if max(logits) > -math.inf else [*logits[:-1], 0.0]
    how = Sampling(top_k=k, top_p=p, min_p=m)
    row = torch.tensor([logits, [-z if z > -math.inf else 1.0 for z in logits]], dtype=torch.float64)
    kept = truncate(row, how)
    for found, given_ in zip(kept, row.tolist(), strict=True):
        assert set(found.nonzero()[:, 0].tolist()) == reference(given_, how)
    assert (kept & (row == row.amax(1, keepdim=True))).any(1).all()  # a best one stays


@settings(max_examples=200, deadline=None)
@given(st.lists(continuous, min_size=2, max_size=40), st.floats(1e-6, 1.0))
def test_a_nucleus_is_the_smallest_set_that_reaches_p(logits: list[float], p: float) -> None:
    z = torch.tensor([logits], dtype=torch.float64)
    kept = nucleus(z, p)[0]
    probs = z.softmax(1)[0]
    inside = float(probs[kept].sum())
    assert inside >= p - 1e-9
    assert inside - float(probs[kept].min()) < p + 1e-9
    assert float(probs[kept].min()) >= float(probs[~kept].max()) if (~kept).any() else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constraint_with_top_p_of_one_removes_nothing(dtype: torch.dtype) -> None:
    """However peaked: a cumulative sum that rounds to 1 must not cut the tail."""
    logits = torch.full((1, 1000), -20.0, dtype=dtype)
    logits[0, 500] = 20.0

    class Fixed:
        def logits(self) -> Tensor:
            return logits

    constraint = Nucleus("mask", top_p=1.0)
    policy = Logits(Logits.Config())
    policy.setup()
    constraint.resolve({"mask": policy})
    constraint._decoder = Fixed()  # type: ignore[assignment]
    assert constraint.allowed().all()


# -- each way -------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sorting": lambda logits_nV, top_p: found_by._in_pieces(logits_nV, top_p, True),
    "histogram": lambda logits_nV, top_p: found_by._in_pieces(logits_nV, top_p, False),
    "halving": found_by._by_halving,
}


def mass_before(logits_V: Tensor) -> Tensor:
    """[V]: the probability of all that the stable sort puts before each token, in double precision."""
    sorted_V, order_V = torch.sort(logits_V.double(), descending=True, stable=True)
    probs_V = sorted_V.softmax(0)
    return torch.zeros_like(probs_V).scatter(0, order_V, probs_V.cumsum(0) - probs_V)


def check_nucleus(way: str, logits_nV: Tensor, top_p: float) -> None:
    """Equal to sorting in double precision, but for tokens that rounding may move across the edge."""
    kept_nV = WAYS[way](logits_nV, top_p)
    slack = 1e-12 if logits_nV.dtype == torch.float64 else 1e-5
    for kept_V, logits_V in zip(kept_nV, logits_nV, strict=True):
        before_V = mass_before(logits_V)
        far_V = (before_V - top_p).abs() > slack
        expected_V = (before_V < top_p) & (logits_V > -math.inf)
        assert torch.equal(kept_V[far_V], expected_V[far_V])
        # Whatever rounding does, a set that begins with the best and leaves out nothing in between.
        _, order_V = torch.sort(logits_V, descending=True, stable=True)
        count = int(kept_V.sum())
        assert count
        assert kept_V[order_V[:count]].all()


kinds = st.sampled_from(["flat", "peaked", "level", "tied", "few levels", "far", "masked", "one", "large"])


def row_of(kind: str, vocabulary: int, random: torch.Generator, dtype: torch.dtype) -> Tensor:
    x_V = torch.randn(vocabulary, generator=random, dtype=torch.float64)
    if kind == "masked":
        gone_V = torch.rand(vocabulary, generator=random) < 0.7
        gone_V[3 % vocabulary] = False
        x_V = x_V.masked_fill(gone_V, -math.inf)
    scaled = {
        "flat": 0.1 * x_V, "peaked": 6 * x_V, "level": torch.full_like(x_V, 0.7), "tied": (2 * x_V).round(),
        "few levels": (x_V > 1).double(), "far": 1e4 * x_V, "masked": x_V,
        "one": torch.where(torch.arange(vocabulary) == vocabulary - 1, 0.0, -math.inf), "large": x_V + 1e5,
    }  # fmt: skip
    return scaled[kind].to(dtype)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=200, deadline=None)
@given(
    st.lists(kinds, min_size=1, max_size=5),
    st.sampled_from([1, 2, 17, 300, 2000]),
    st.one_of(st.floats(1e-6, 1 - 1e-6), st.sampled_from([0.5, 0.9, 0.999, 1 - 1e-12])),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
def test_each_way_finds_the_nucleus_that_sorting_finds(
    way: str, rows: list[str], vocabulary: int, top_p: float, dtype: torch.dtype, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    check_nucleus(way, torch.stack([row_of(kind, vocabulary, random, dtype) for kind in rows]), top_p)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-3, 0), min_size=8, max_size=60), st.sampled_from([0.25, 0.3, 0.5, 0.77, 0.95]))
def test_ties_at_the_edge_go_to_the_first(way: str, levels_V: list[int], top_p: float) -> None:
    """On weights that floats hold exactly both must agree everywhere, the boundary included."""
    logits = torch.tensor([levels_V, levels_V[::-1]], dtype=torch.float64) * math.log(2)
    for kept_V, row_V in zip(WAYS[way](logits, top_p), logits, strict=True):
        found = set(kept_V.nonzero()[:, 0].tolist())
        expected = reference(row_V.tolist(), Sampling(top_p=top_p))
        before_V = mass_before(row_V)
        edge = {v for v in range(len(row_V)) if abs(float(before_V[v]) - top_p) < 1e-12}
        assert found - edge == expected - edge


@pytest.mark.parametrize("scale", [0.01, 0.3, 4.0, 100.0])
def test_only_the_edge_is_sorted(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    sort = numpy.sort

    def noted(x: Any, **how: Any) -> Any:
        widths.append(x.shape[1])
        return sort(x, **how)

    monkeypatch.setattr(numpy, "sort", noted)
    nucleus(scale * torch.randn(8, 5000, generator=torch.Generator().manual_seed(0)), 0.9)
    assert max(widths) < 100


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_is_no_distribution_keeps_nothing_and_disturbs_no_other(way: str) -> None:
    fine = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    spoilt, endless = fine.clone(), fine.clone()
    spoilt[7], endless[7] = math.nan, math.inf
    rows = torch.stack([fine, spoilt, torch.full_like(fine, -math.inf), endless, fine])
    kept = WAYS[way](rows, 0.9)
    assert kept.any(1).tolist() == [True, False, False, False, True]
    assert torch.equal(kept[0], nucleus(fine[None], 0.9)[0])
    assert torch.equal(kept[4], kept[0])


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(st.lists(kinds, min_size=2, max_size=6), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_no_row_depends_on_its_neighbours(way: str, rows: list[str], top_p: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits_nV = torch.stack([row_of(kind, 1500, random, torch.float32) for kind in rows])
    alone_nV = torch.cat([WAYS[way](row_1V, top_p) for row_1V in logits_nV.split(1)])
    assert torch.equal(WAYS[way](logits_nV, top_p), alone_nV)


def test_rows_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 3 * torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    whole = nucleus(logits, 0.8)
    monkeypatch.setattr(found_by, "_PIECE", 2500)
    assert torch.equal(nucleus(logits, 0.8), whole)
    assert nucleus(logits[:0], 0.8).shape == (0, 1000)
