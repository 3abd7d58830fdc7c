"""Choosing a token: the inverse of the cumulative distribution, and the log-probs of what it was drawn from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign.decoding import choosing
from rlalign.decoding.choosing import choose, inverse_cdf, only
from rlalign.randomness import Seeds

from .sampled_plainly import by_walking


def in_parallel(mass_nB: Tensor, reached_nB: Tensor, target_n1: Tensor) -> tuple[Tensor, Tensor]:
    """As on a GPU."""
    return choosing._first_above_in_parallel(mass_nB, reached_nB, target_n1)


@pytest.fixture(params=["flat", "blocks", "flat in parallel", "blocks in parallel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way of looking for a place, with blocks small enough to matter."""
    monkeypatch.setattr(choosing, "BLOCK", 3)
    monkeypatch.setattr(choosing, "FLAT", 10**6 if request.param.startswith("flat") else 0)
    if request.param.endswith("parallel"):
        monkeypatch.setattr(choosing, "_first_above", in_parallel)
    return str(request.param)


edge = st.sampled_from([0.0, 2.0**-24, 1e-7, 0.5, 1 - 2.0**-24, 1 - 2.0**-53, 1.0])
probability = st.one_of(st.just(0.0), st.floats(1e-30, 1.0), st.sampled_from([1e-8, 0.5, 1.0]))


@pytest.mark.thin(1)
@pytest.mark.parametrize("vocabulary", [5, 7, 9])
def test_a_token_of_probability_zero_is_never_chosen(way: str, vocabulary: int) -> None:
    @settings(max_examples=120, deadline=None)
    @given(
        st.lists(st.lists(probability, min_size=vocabulary, max_size=vocabulary), min_size=1, max_size=4),
        st.lists(st.one_of(edge, st.floats(0, 1)), min_size=4, max_size=4),
        st.sampled_from([torch.float32, torch.float64]),
    )
    def check(rows: list[list[float]], us: list[float], dtype: torch.dtype) -> None:
        mass = torch.tensor(rows, dtype=dtype)
        mass[:, 2] += ~(mass > 0).any(1)
        token = inverse_cdf(mass, torch.tensor(us[: len(rows)], dtype=torch.float64))
        assert token.dtype == torch.long
        assert (mass.gather(1, token[:, None]) > 0).all()

    check()


def test_it_is_the_inverse_of_the_cumulative_distribution(way: str) -> None:
    """On numbers that floats hold exactly the two must agree everywhere, boundaries included."""

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.integers(0, 8), min_size=1, max_size=11), st.integers(0, 2**12 - 1))
    def check(counts: list[int], place: int) -> None:
        counts = counts if sum(counts) else [1]
        total = 2 ** math.ceil(math.log2(sum(counts)))
        counts = [*counts, total - sum(counts)]
        probs, u = [c / total for c in counts], place / 2**12
        assert int(inverse_cdf(torch.tensor([probs]), torch.tensor([u]))) == by_walking(probs, u)

    check()


@pytest.mark.parametrize("vocabulary", [50, 3000, 20_001])
def test_large_vocabularies_too(vocabulary: int) -> None:
    """Every token that the sums of one pass in double precision give, but where rounding decides."""
    random = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(64, vocabulary, generator=random)
    u = torch.rand(64, generator=random)
    found = choose(logits, u)
    reached = logits.double().softmax(1).cumsum(1)
    expected = torch.searchsorted(reached, u.double()[:, None], right=True)[:, 0]
    near = (reached - u.double()[:, None]).abs().amin(1) < 1e-6
    assert torch.equal(found.token_n[~near], expected[~near])
    assert int(near.sum()) < 8
    logp = logits.double().log_softmax(1).gather(1, found.token_n[:, None])[:, 0]
    torch.testing.assert_close(found.logprob_n.double(), logp, rtol=0, atol=3e-6)
    assert found.full_logprob_n is found.logprob_n


def test_frequencies_follow_the_probabilities(way: str) -> None:
    """χ² over many draws of the run's own uniforms."""
    probs = torch.tensor([0.3, 0.0, 0.2, 1e-3, 0.0, 0.25, 0.15, 0.099, 0.0])
    n = 1 << 17
    u = Seeds(3).uniforms("sample", positions=range(1 << 9), samples=1, steps=1 << 8).reshape(-1)
    counts = torch.bincount(inverse_cdf(probs.expand(n, -1), u), minlength=len(probs)).double()
    assert counts[probs == 0].sum() == 0
    expected = probs[probs > 0].double() / probs.double().sum() * n
    chi2 = float(((counts[probs > 0] - expected) ** 2 / expected).sum())
    assert chi2 < 20.5  # 5 degrees of freedom, 0.1 %


@pytest.mark.parametrize("vocabulary", [6, 3000])
def test_log_probs_are_of_what_was_kept_and_of_all(vocabulary: int) -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(40, vocabulary, generator=random, dtype=torch.float64)
    kept = torch.rand(40, vocabulary, generator=random) < 0.5
    kept[:, 1] = True
    for u in (torch.rand(40, generator=random), None):
        token, logp, full = choose(logits, u, kept)
        assert kept.gather(1, token[:, None]).all()
        left = logits.masked_fill(~kept, -math.inf).log_softmax(1)
        torch.testing.assert_close(logp, left.gather(1, token[:, None])[:, 0], rtol=0, atol=1e-12)
        every = logits.log_softmax(1).gather(1, token[:, None])[:, 0]
        torch.testing.assert_close(full, every, rtol=0, atol=1e-12)
        if u is None:
            assert torch.equal(token, left.argmax(1))


def test_tokens_are_the_same_wherever_their_probabilities_are_weighed() -> None:
    """Of all tokens, as on a CPU, or of those that are kept among themselves."""
    random = torch.Generator().manual_seed(2)
    logits = 4 * torch.randn(500, 1000, generator=random)
    kept = torch.rand(500, 1000, generator=random) < 0.1
    u = torch.rand(500, generator=random, dtype=torch.float64)
    found, among = choose(logits, u, kept), choose(only(logits, kept), u)
    assert torch.equal(found.token_n, among.token_n)
    torch.testing.assert_close(found.logprob_n, among.logprob_n, rtol=1e-6, atol=1e-6)


def test_what_is_kept_may_be_out_of_reach_among_all() -> None:
    logits = torch.tensor([[0.0, -300.0, -301.0]])
    token, logp, full = choose(logits, torch.tensor([0.9]), torch.tensor([[False, True, True]]))
    assert token.tolist() == [2]
    assert float(logp) == pytest.approx(-math.log1p(math.e), abs=1e-5)
    assert float(full) == pytest.approx(-301.0, abs=1e-3)


def test_a_row_out_of_reach_moves_no_other_by_a_bit() -> None:
    random = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(200, 1000, generator=random)
    kept = torch.rand(200, 1000, generator=random) < 0.1
    u = torch.rand(200, generator=random, dtype=torch.float64)
    alone = choose(logits[1:], u[1:], kept[1:])
    logits[0, kept[0]] -= 300
    together = choose(logits, u, kept)
    for one, beside in zip(alone, together, strict=True):
        assert torch.equal(one, beside[1:])
    assert bool(kept[0, together.token_n[0]]) and bool(together.logprob_n[0].isfinite())


@pytest.mark.parametrize("vocabulary", [5, 3000])
@pytest.mark.parametrize("drawn", [True, False])
def test_what_is_no_number_has_no_log_prob_and_spoils_no_other_row(vocabulary: int, drawn: bool) -> None:
    logits = torch.zeros(5, vocabulary)
    logits[0, 1], logits[1, 1], logits[2] = math.nan, math.inf, -math.inf
    kept = torch.ones(5, vocabulary, dtype=torch.bool)
    kept[3] = False
    u = torch.full((5,), 0.7) if drawn else None
    token, logp, full = choose(logits, u, kept)
    assert logp.isnan().tolist() == [True, True, True, True, False]
    assert full.isnan().tolist() == [True, True, True, False, False]
    assert bool(((token >= 0) & (token < vocabulary)).all())
    assert choose(logits, u).logprob_n.isnan().tolist() == [True, True, True, False, False]


def test_only_leaves_what_is_kept() -> None:
    logits = torch.tensor([[1.0, -math.inf, 3.0, -2.0]])
    kept = torch.tensor([[True, True, False, True]])
    assert only(logits, kept).tolist() == [[1.0, -math.inf, -math.inf, -2.0]]
    assert logits.tolist() == [[1.0, -math.inf, 3.0, -2.0]]
