"""The formulas on literal numbers and against loops: limits, slopes, invariances; who is compared with whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlalign import Batch, Example, Reward, Rollout, Sampling
from rlalign.data.statistics import ranked
from rlalign_plugin_preference import (
    dpo_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    log_odds,
    mean_distance,
    mean_logprob,
    next_other,
    pairs,
    pro_loss,
    ranking_loss,
    reference_point,
    reward_difference,
    sft_weight,
    simpo_loss,
)


def f64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# -- the formulas ----------------------------------------------------------------------------------------------

reals = st.floats(-30, 30)


def graded(function: Any, at: float) -> tuple[float, float]:
    x = f64([at]).requires_grad_()
    value = function(x).sum()
    (slope,) = torch.autograd.grad(value, x)
    return float(value.detach()), float(slope)


def test_at_the_reference() -> None:
    """No margin: DPO and cDPO log 2, IPO 1/(4τ²), KTO λ/2."""
    zero = f64([0.0])
    for beta in (0.1, 0.5):
        assert float(dpo_loss(beta * zero)) == pytest.approx(math.log(2), abs=1e-15)
        assert float(dpo_loss(beta * zero, 0.3)) == pytest.approx(math.log(2), abs=1e-15)
        assert float(dpo_loss(beta * zero, 0.3, robust=True)) == pytest.approx(math.log(2), abs=1e-15)
        assert float(ipo_loss(zero, beta)) == pytest.approx(1 / (4 * beta**2), abs=1e-12)
        for good in (True, False):
            loss = kto_loss(zero, torch.tensor([good]), torch.zeros(()), beta, 0.7, 1.4)
            assert float(loss) == pytest.approx((0.7 if good else 1.4) / 2, abs=1e-15)


@given(reals, st.floats(0.01, 0.45))
def test_label_smoothing(margin: float, share: float) -> None:
    z = f64([margin])
    assert torch.equal(dpo_loss(z, 0.0), dpo_loss(z))
    assert torch.equal(dpo_loss(z, 0.0, robust=True), dpo_loss(z))
    # Labels wrong with probability ε: cDPO is the expected loss, and robust DPO's expected loss is DPO's.
    mixed = (1 - share) * dpo_loss(z) + share * dpo_loss(-z)
    assert float(dpo_loss(z, share)) == pytest.approx(float(mixed), rel=1e-12)
    unbiased = (1 - share) * dpo_loss(z, share, True) + share * dpo_loss(-z, share, True)
    assert float(unbiased) == pytest.approx(float(dpo_loss(z)), rel=1e-9, abs=1e-9)


@given(reals)
def test_slopes(margin: float) -> None:
    """−σ(−z); cDPO's is 0 where σ(z) = 1 − ε and turns there; IPO's where d = 1/(2τ)."""
    _, slope = graded(dpo_loss, margin)
    assert slope == pytest.approx(-1 / (1 + math.exp(margin)), abs=1e-12)
    turn = math.log(0.9 / 0.1)
    _, slope = graded(lambda z: dpo_loss(z, 0.1), margin)
    assert slope * (margin - turn) >= -1e-12
    assert graded(lambda z: dpo_loss(z, 0.1), turn)[1] == pytest.approx(0, abs=1e-12)
    _, slope = graded(lambda d: ipo_loss(d, 0.1), margin)
    assert slope == pytest.approx(2 * (margin - 5), abs=1e-9)
    _, slope = graded(lambda z: simpo_loss(z, 1.375), margin)
    assert slope == pytest.approx(-1 / (1 + math.exp(margin - 1.375)), abs=1e-12)


@given(reals, st.booleans(), st.floats(0, 5))
def test_kto_rises_and_falls(rho: float, good: bool, z: float) -> None:
    """A desirable response's loss falls with ρ, an undesirable one's rises; neither leaves [0, λ]."""
    value, slope = graded(lambda x: kto_loss(x, torch.tensor([good]), f64(z), 0.5, 0.8, 1.2), rho)
    assert 0 <= value <= (0.8 if good else 1.2)
    assert slope <= 0 if good else slope >= 0
    near = kto_loss(f64([z]), torch.tensor([good]), f64(z), 0.5)
    assert float(near) == 0.5


@given(st.floats(-40, -1e-6))
def test_log_odds(mean: float) -> None:
    expected = mean - math.log(-math.expm1(mean))
    value, slope = graded(log_odds, mean)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert slope == pytest.approx(1 / -math.expm1(mean), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_of_certainty_are_finite(dtype: torch.dtype) -> None:
    mean = torch.tensor([0.0, -1e-30, -1e-9, -1e3], dtype=dtype, requires_grad=True)
    odds = log_odds(mean)
    (slope,) = torch.autograd.grad(odds.sum(), mean)
    assert bool(odds.isfinite().all()) and bool(slope.isfinite().all())


@given(st.lists(st.tuples(st.floats(-5, 0), st.floats(-2, 2)), min_size=1, max_size=5))
def test_pro_by_a_loop(responses: list[tuple[float, float]]) -> None:
    """The sum as the paper writes it; padding adds nothing."""
    responses.sort(key=lambda pair: -pair[1])
    expected = 0.0
    for k, (score, reward) in enumerate(responses[:-1]):
        worse = responses[k + 1 :]
        own = math.exp(score * max(reward - r for _, r in worse))
        expected -= math.log(own / (own + sum(math.exp(s * (reward - r)) for s, r in worse)))
    score, reward = f64([[s for s, _ in responses]]), f64([[r for _, r in responses]])
    real = torch.ones_like(score, dtype=torch.bool)
    assert float(pro_loss(score, reward, real)) == pytest.approx(expected, abs=1e-9)
    padded = [torch.cat([x, x[:, :1].expand(1, 2) + 1], 1) for x in (score, reward)]
    more = torch.cat([real, torch.zeros(1, 2, dtype=torch.bool)], 1)
    assert float(pro_loss(*padded, more)) == pytest.approx(expected, abs=1e-9)


@given(st.floats(-5, 0), st.floats(-5, 0), st.floats(0, 5))
def test_pro_of_two_is_a_logistic_loss(one: float, other: float, gap: float) -> None:
    """Of slope r_1 − r_2; with equal rewards a constant whose gradient is zero."""
    score = f64([[one, other]]).requires_grad_()
    loss = pro_loss(score, f64([[gap, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(gap * (other - one))), abs=1e-9)
    (slope,) = torch.autograd.grad(loss.sum(), score)
    weight = gap / (1 + math.exp(gap * (one - other)))
    assert slope.tolist() == [pytest.approx([-weight, weight], abs=1e-9)]
    assert gap > 0 or not slope.any()


def test_what_the_losses_are_made_of() -> None:
    """Padding, the 9s, is never read."""
    log_ratio_NT, mask_NT = f64([[1.0, 2.0], [-3.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    assert implicit_reward(log_ratio_NT, mask_NT, 0.5).tolist() == [1.5, -1.5]
    assert mean_logprob(log_ratio_NT, mask_NT).tolist() == [1.5, -3.0]
    assert float(reference_point(log_ratio_NT, mask_NT)) == 0
    assert float(reference_point(log_ratio_NT[:1], mask_NT[:1])) == 3
    assert float(reference_point(log_ratio_NT[1:], mask_NT[1:])) == 0, (
        "a KL is not negative, nor is its estimate"
    )
    assert ranking_loss(f64([1.0, 2.0]), f64([3.0, 1.0])).tolist() == [2.0, 0.0]
    assert sft_weight(f64([1, 2, 4]), 0.5).tolist() == [0.0, 0.5, 4.5]


def test_distances_by_hand() -> None:
    value_GK, real_GK = (
        f64([[1.0, 4.0, 2.0], [5.0, 9.0, 9.0]]),
        torch.tensor([[True] * 3, [True, False, False]]),
    )
    assert mean_distance(value_GK, real_GK)[real_GK].tolist() == [2.0, 2.5, 1.5, 0.0]
    assert reward_difference(f64([3.0, 1.0]), f64([1.0, 3.0])).tolist() == [2.0, 0.0]


def test_another_prompt_for_each() -> None:
    assert next_other(["a", "a", "b", "a"]) == [2, 2, 3, 2]
    assert next_other(["a", "a"]) == [None, None]


# -- pairs and ranks -------------------------------------------------------------------------------------------


def batch_of(rewards: Sequence[Sequence[float]], lengths: Sequence[int] | None = None) -> Batch:
    """Groups of responses with these rewards, group by group, of one step or as many as said."""
    groups = [g for g, row in enumerate(rewards) for _ in row]
    n = len(groups)
    length_N = torch.tensor(lengths or [1] * n)
    mask_NT = torch.arange(max([1, *length_N.tolist()])) < length_N[:, None]
    zeros_NT = torch.zeros(mask_NT.shape, dtype=torch.float64)
    rollout = Rollout(
        examples=tuple(Example(str(g), str(g)) for g in range(len(rewards))),
        inputs=(torch.zeros(1),) * len(rewards),
        group_N=torch.tensor(groups, dtype=torch.long),
        actions_NT=torch.zeros_like(mask_NT, dtype=torch.long),
        mask_NT=mask_NT,
        finished_N=torch.ones(n, dtype=torch.bool),
        settings=(Sampling(),),
        setting_N=torch.zeros(n, dtype=torch.long),
        logprobs_NT=zeros_NT,
        full_logprobs_NT=zeros_NT,
        texts=("",) * n,
    )
    total_N = f64([r for row in rewards for r in row])
    tokens_NT = zeros_NT.clone()
    tokens_NT[:, 0] = total_N
    return Batch.of(rollout, Reward(tokens_NT, {"only": total_N}), total_N)


levels = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5), min_size=1, max_size=4)


@given(levels, st.randoms())
def test_pairs_by_a_loop(rewards: list[list[float]], random: Any) -> None:
    batch = batch_of(rewards)
    order = list(range(len(batch)))
    random.shuffle(order)
    batch = batch.take(torch.tensor(order)).as_step()
    total, group = batch.reward.total_N.tolist(), batch.rollout.group_N.tolist()
    rows = range(len(batch))
    every = {(i, j) for i in rows for j in rows if group[i] == group[j] and total[i] > total[j]}
    found = list(zip(*(x.tolist() for x in pairs(batch, "all")), strict=True))
    assert len(found) == len(set(found)) and set(found) == every
    extremes = set()
    for g in set(group):
        mine = [i for i in rows if group[i] == g]
        best, worst = max(mine, key=lambda i: (total[i], -i)), min(mine, key=lambda i: (total[i], i))
        if total[best] > total[worst]:
            extremes.add((best, worst))
    assert set(zip(*(x.tolist() for x in pairs(batch, "best-worst")), strict=True)) == extremes
    rows_GK, real_GK = ranked(batch.reward.total_N, *batch.rollout.groups())
    for g in set(group):
        mine = sorted((i for i in rows if group[i] == g), key=lambda i: (-total[i], i))
        assert rows_GK[g][real_GK[g]].tolist() == mine


def test_no_responses_no_pairs() -> None:
    batch = batch_of([[1.0, 0.0]]).take(torch.tensor([], dtype=torch.long)).as_step()
    for which in ("best-worst", "all"):
        assert [len(x) for x in pairs(batch, which)] == [0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dpo", "cdpo", "free", "ipo", "ipo-sum", "simpo", "orpo"])
def test_a_prompt_s_constant(name: str) -> None:
    """What is added to both responses of a pair is nothing to DPO and IPO, and something to ORPO."""
    g = torch.Generator().manual_seed(0)
    good, bad = -torch.rand(2, 5, generator=g).double() - 0.1
    losses = {
        "dpo": lambda w, v: dpo_loss(0.1 * (w - v)),
        "cdpo": lambda w, v: dpo_loss(0.1 * (w - v), 0.1),
        "free": lambda w, v: dpo_loss(0.5 * (w - v)),
        "ipo": lambda w, v: ipo_loss(w - v, 0.1),
        "ipo-sum": lambda w, v: ipo_loss(w - v, 0.5),
        "simpo": lambda w, v: simpo_loss(2.5 * (w / 3 - v / 2), 1.375),  # lengths 3 and 2
        "orpo": lambda w, v: dpo_loss(log_odds(w / 3) - log_odds(v / 2)),
    }
    before, after = (losses[name](good - c, bad - c) for c in (0.0, 0.5))
    assert bool(torch.allclose(before, after, rtol=0, atol=1e-12)) is (name not in ("simpo", "orpo"))
