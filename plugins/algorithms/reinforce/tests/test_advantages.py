"""Baselines, scales and what tokens are paid for: by hand, and what holds whatever the rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign.testing import Bench
from rlalign.testing.golden import GIVEN, golden
from rlalign_plugin_reinforce.advantages import (
    mean_of_group,
    mean_of_others,
    mean_of_past,
    over_batch,
    over_group,
    to_go,
)

from .conftest import by_logprob


def f64(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_means_by_hand() -> None:
    reward, group = f64([2.0, 1.0, 5.0, 4.0, 0.0]), torch.tensor([0, 1, 0, 0, 1])
    assert mean_of_others(reward, group).tolist() == [4.5, 0.0, 3.0, 3.5, 1.0]
    assert mean_of_group(reward, group).tolist() == pytest.approx([11 / 3, 0.5, 11 / 3, 11 / 3, 0.5])
    assert mean_of_past(0.0, 0) == 0.0
    assert mean_of_past(6.0, 4) == 1.5


def test_rewards_to_go_by_hand() -> None:
    """A step that was given is passed over, padding is never read."""
    reward = f64([[1.0, 9.0, 2.0, -4.0], [0.5, 0.25, 7.0, 7.0]])
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    assert to_go(reward, mask).tolist() == [[-1.0, 0.0, -2.0, -4.0], [0.75, 0.25, 0.0, 0.0]]


@pytest.mark.parametrize("bessel, deviation", [(True, 2.0), (False, 2.0 * (2 / 3) ** 0.5)])
def test_the_deviation_of_a_group_by_hand(bessel: bool, deviation: float) -> None:
    reward, group = f64([1.0, 3.0, 5.0, 7.0, 7.0]), torch.tensor([0, 0, 0, 1, 1])
    found = over_group(reward[:, None], reward, group, bessel=bessel, delta=0.5)[:, 0]
    assert found.tolist() == pytest.approx([x / (deviation + 0.5) for x in (1, 3, 5)] + [0.0, 0.0])


def test_the_deviation_of_a_batch_by_hand() -> None:
    """Over all tokens: the longer response counts twice."""
    advantage, mask = f64([[3.0, 3.0], [0.0, 8.0]]), torch.tensor([[True, True], [True, False]])
    found = over_batch(advantage, mask, bessel=False, delta=0.0, size=f64(3.0))
    assert found.flatten().tolist() == pytest.approx([2**-0.5, 2**-0.5, -(2**0.5), 0.0])


REWARDS = st.lists(st.integers(-50, 50), min_size=2, max_size=5).map(lambda row: [x / 7 for x in row])
GROUPS = st.lists(REWARDS, min_size=1, max_size=4)


def shuffled(groups: list[list[float]], random: Any) -> tuple[Tensor, Tensor]:
    rows = [(g, r) for g, rewards in enumerate(groups) for r in rewards]
    random.shuffle(rows)
    return f64([r for _, r in rows]), torch.tensor([g for g, _ in rows])


@given(GROUPS, st.randoms())
def test_what_compares_with_others_knows_no_order_and_no_level(
    groups: list[list[float]], random: Any
) -> None:
    reward_N, group_N = shuffled(groups, random)
    for mean_of in (mean_of_others, mean_of_group):
        found = reward_N - mean_of(reward_N, group_N)
        for g, rewards in enumerate(groups):
            mine = found[group_N == g]
            assert float(mine.sum()) == pytest.approx(0, abs=1e-12)
            k, mean = len(rewards), sum(rewards) / len(rewards)
            factor = k / (k - 1) if mean_of is mean_of_others else 1
            theirs = [factor * (r - mean) for r in reward_N[group_N == g].tolist()]
            assert mine.tolist() == pytest.approx(theirs, abs=1e-12)
        moved = reward_N + 7.0 * group_N
        torch.testing.assert_close(moved - mean_of(moved, group_N), found, rtol=0, atol=1e-12)


@given(GROUPS, st.randoms(), st.integers(1, 9), st.integers(-9, 9))
def test_with_its_deviation_a_group_knows_no_unit_either(
    groups: list[list[float]], random: Any, unit: int, level: int
) -> None:
    """r → a·r + b changes nothing without δ; without the deviation only b does not."""
    reward_N, group_N = shuffled(groups, random)
    other_N = unit / 3 * reward_N + level

    def advantage(of_N: Tensor) -> Tensor:
        centred_N1 = (of_N - mean_of_group(of_N, group_N))[:, None]
        return over_group(centred_N1, of_N, group_N, bessel=True, delta=0.0)

    torch.testing.assert_close(advantage(other_N), advantage(reward_N), rtol=0, atol=1e-9)
    centred_N = other_N - mean_of_group(other_N, group_N)
    plain_N = reward_N - mean_of_group(reward_N, group_N)
    torch.testing.assert_close(centred_N, unit / 3 * plain_N, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12).filter(lambda row: len(set(row)) > 1))
def test_over_a_batch_tokens_have_mean_0_and_deviation_1(row: list[int]) -> None:
    advantage, mask = f64([row]), torch.ones(1, len(row), dtype=torch.bool)
    for bessel in (True, False):
        found = over_batch(advantage, mask, bessel=bessel, delta=0.0, size=f64(1.0))
        assert float(found.mean()) == pytest.approx(0, abs=1e-12)
        assert float(found.std(correction=int(bessel))) == pytest.approx(1, abs=1e-12)


# -- lengths ----------------------------------------------------------------------------------------------


def weights(folder: Path, member: str, lengths: list[int]) -> list[list[float]]:
    """|d loss / d log π| of each token, by response: one group, rewards 1, 0, 3."""
    options = {"kl": 0.0} if member == "grpo" else {"longest": 8} if member == "dr-grpo" else {}
    logp = [[[-0.5 - 0.1 * t for t in range(n)] for n in lengths]]
    say = {**golden(logp, None, [[1.0, 0.0, 3.0]]), "algorithm": {member: options}}
    bench = Bench(folder, say, GIVEN)
    batch = bench.batch()
    grad_NT = by_logprob(bench, batch)
    return [row[:n] for row, n in zip(grad_NT.abs().tolist(), lengths, strict=True)]


def test_what_a_longer_response_does_to_the_weight_of_tokens(tmp_path: Path) -> None:
    """Lower for its own in GRPO, for everybody's in DAPO, for nobody's in Dr. GRPO."""
    change = {}
    for member in ("grpo", "dapo", "dr-grpo"):
        short = weights(tmp_path / f"{member}-short", member, [2, 3, 2])
        long = weights(tmp_path / f"{member}-long", member, [2, 6, 2])
        change[member] = [long[i][0] / short[i][0] for i in range(3)]
    assert change["grpo"] == pytest.approx([1, 1 / 2, 1])
    assert change["dapo"] == pytest.approx([7 / 10] * 3)
    assert change["dr-grpo"] == pytest.approx([1, 1, 1])
