"""Rewards by name, ranks within a group, whitening, clipped ratios: by hand, and against loops."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlalign import Batch, ComponentError, Example, Reward, Rollout
from rlalign.data.statistics import (
    best_and_worst,
    clipped_surrogate,
    first_single,
    moments,
    per_response,
    ranked,
    refuse_negative,
    reward_named,
    standardised,
    whitened,
)
from rlalign.testing import Logits


def f64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def rollout_of(*sizes: int) -> Rollout:
    """Groups of these many responses of two tokens each."""
    examples = [Example(str(g), str(g), ("1 2",) * size) for g, size in enumerate(sizes)]
    policy = Logits(Logits.Config(prompts=max(1, len(sizes)), responses=9))
    policy.setup()
    return policy.encode(examples)


GROUPS = st.lists(st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=4), min_size=1, max_size=4)


def test_a_reward_by_name() -> None:
    rollout = rollout_of(2)
    steps_NT = torch.arange(1.0, 1 + rollout.mask_NT.numel()).view(rollout.mask_NT.shape)
    once_N = torch.tensor([3.0, 4.0])
    reward = Reward(2 * steps_NT, {"steps": steps_NT, "once": once_N})
    batch = Batch.of(rollout, reward, reward.total_N)
    sums_N = torch.where(rollout.mask_NT, steps_NT, 0.0).sum(1)
    assert torch.equal(reward_named(batch, "steps", "it reads"), sums_N)
    assert torch.equal(reward_named(batch, "once", "it reads"), once_N)
    assert torch.equal(reward_named(batch, None, "it reads"), reward.total_N)
    assert torch.equal(per_response(steps_NT, rollout.mask_NT), sums_N)
    with pytest.raises(ComponentError, match="it reads `other`; the rewards are steps, once"):
        reward_named(batch, "other", "it reads")


def test_negative_rewards_are_counted() -> None:
    refuse_negative(torch.tensor([0.0, 1.0]), "they weigh", "shift them")
    said = "2 of 3 rewards are negative, and they weigh; shift them"
    with pytest.raises(ComponentError, match=re.escape(said)):
        refuse_negative(torch.tensor([-1.0, 1.0, -0.1]), "they weigh", "shift them")


def test_the_first_response_without_another() -> None:
    assert first_single(rollout_of(2, 3)) is None
    example = first_single(rollout_of(2, 1, 1))
    assert example is not None
    assert example.id == "1"


@given(GROUPS)
def test_ranks_by_a_loop(values: list[list[float]]) -> None:
    rollout = rollout_of(*(len(group) for group in values))
    flat = [value for group in values for value in group]
    rows_GK, real_GK = ranked(f64(flat), *rollout.groups())
    extremes = []
    for g in range(len(values)):
        mine = [i for i, group in enumerate(rollout.group_N.tolist()) if group == g]
        assert rows_GK[g][real_GK[g]].tolist() == sorted(mine, key=lambda i: (-flat[i], i))
        best, worst = max(mine, key=lambda i: (flat[i], -i)), min(mine, key=lambda i: (flat[i], i))
        extremes += [(best, worst)] if flat[best] > flat[worst] else []
    found = best_and_worst(f64(flat), *rollout.groups())
    assert list(zip(*(rows.tolist() for rows in found), strict=True)) == extremes


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_whitening(rows: list[list[float]], data: Any) -> None:
    x = f64(rows)
    flags = st.lists(st.booleans(), min_size=4, max_size=4)
    mask = torch.tensor(data.draw(st.lists(flags, min_size=len(rows), max_size=len(rows))))
    mask[0, 0] = True
    mean, variance = moments(x, mask)
    chosen = x[mask]
    assert float(mean) == pytest.approx(float(chosen.mean()), abs=1e-9)
    assert float(variance) == pytest.approx(float(chosen.var(correction=0)), abs=1e-9)
    white = whitened(x, mean, variance)[mask]
    assert float(white.mean()) == pytest.approx(0, abs=1e-3)
    kept = whitened(x, mean, variance, shift=False)[mask]
    torch.testing.assert_close(kept - white, mean.expand_as(kept), rtol=0, atol=1e-9)
    if float(variance) > 1e-3:
        assert float(white.var(correction=0)) == pytest.approx(1, rel=1e-4)
        assert float(white.mean()) == pytest.approx(0, abs=1e-9)


def test_standardising_by_hand() -> None:
    x_NT = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask_NT = torch.tensor([[True, True, False], [True, False, False]])
    deviation = math.sqrt(8 / 3)
    expected = [[-2 / deviation, 0.0, 0.0], [2 / deviation, 0.0, 0.0]]
    torch.testing.assert_close(standardised(x_NT, mask_NT), torch.tensor(expected))
    for level in (0.0, 0.1, -1e6):
        assert not standardised(torch.full((2, 3), level), mask_NT).any()


# -- ratios -----------------------------------------------------------------------------------------


def test_the_surrogate_by_hand() -> None:
    """The clip acts only where the ratio has gone the way that the advantage asked for."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0], dtype=torch.float64)
    surrogate, acts = clipped_surrogate(ratio.log(), advantage, (0.2, 0.2))
    assert surrogate.tolist() == pytest.approx([2.4, -3.0, 1.0, -1.6, 2.2])
    assert acts.tolist() == [True, False, False, True, False]
    surrogate, acts = clipped_surrogate(ratio.log(), advantage, (0.4, 0.05))
    assert surrogate.tolist() == pytest.approx([2.1, -3.0, 1.0, -1.2, 2.1])
    assert acts.tolist() == [True, False, False, True, True]
    for clip in (None, (None, None)):
        surrogate, acts = clipped_surrogate(ratio.log(), advantage, clip)
        assert surrogate.tolist() == pytest.approx([3.0, -3.0, 1.0, -1.0, 2.2])
        assert not acts.any()


def test_a_largest_ratio_bounds_what_the_clip_leaves_without_a_bound() -> None:
    """Where A < 0 the clip holds a small ratio only: one of 5 counts as 5 without `largest`, as 3 with it."""
    ratio = torch.tensor([5.0, 2.0, 0.5, 5.0, 0.5], dtype=torch.float64)
    advantage = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    gain, acts = clipped_surrogate(ratio.log(), advantage, (0.2, 0.2))
    assert gain.tolist() == pytest.approx([-5.0, -2.0, -0.8, 1.2, 0.5])
    assert acts.tolist() == [False, False, True, True, False]
    log_ratio = ratio.log().requires_grad_()
    gain, acts = clipped_surrogate(log_ratio, advantage, (0.2, 0.2), 3.0)
    assert gain.tolist() == pytest.approx([-3.0, -2.0, -0.8, 1.2, 0.5])
    assert acts.tolist() == [True, False, True, True, False]
    (slope,) = torch.autograd.grad(gain.sum(), log_ratio)
    assert slope.tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0, 0.5])
