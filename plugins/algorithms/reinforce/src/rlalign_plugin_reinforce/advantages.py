"""What a response's reward is worth: less a baseline, over a deviation. Legend: N responses, G groups, T steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign import Rollout
from rlalign.data.rollout import EPISODE, START


def to_go(reward_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N,T]: the rewards from each chosen step to the end, undiscounted; 0 elsewhere."""
    paid_NT = torch.where(mask_NT, reward_NT, 0.0)
    return torch.where(mask_NT, paid_NT.flip(1).cumsum(1).flip(1), 0.0)


def turns_to_go(reward_NT: Tensor, mask_NT: Tensor, turn_NT: Tensor, place_N: Tensor) -> Tensor:
    """[E,K]: of each episode, the rewards from the beginning of each turn to the end; 0 from where it is over.

    `place_N` says which episode a row belongs to, its turns being in one row or in several.
    """
    paid_NT = torch.where(mask_NT, reward_NT, 0.0)
    turns = int(torch.where(mask_NT, turn_NT, 0).max()) + 1 if mask_NT.any() else 1
    paid_NK = paid_NT.new_zeros(len(paid_NT), turns).scatter_add(1, turn_NT.clamp_max(turns - 1), paid_NT)
    episodes = int(place_N.max()) + 1 if len(place_N) else 0
    paid_EK = paid_NK.new_zeros(episodes, turns).index_add(0, place_N, paid_NK)
    return paid_EK.flip(1).cumsum(1).flip(1)


def episodes_of(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """(place_N, start_E): which episode each row belongs to, and which episodes are of one start."""
    if EPISODE not in rollout.columns:
        return torch.arange(len(rollout), device=rollout.group_N.device), rollout.group_N
    _, place_N = rollout.columns[EPISODE].unique(return_inverse=True)
    _, start_N = rollout.columns[START].unique(return_inverse=True)
    start_E = place_N.new_zeros(int(place_N.max()) + 1 if len(place_N) else 0)
    return place_N, start_E.index_copy(0, place_N, start_N)


# -- baselines ----------------------------------------------------------------------------------------


def mean_of_past(total: float, count: int) -> float:
    """b: the mean reward of all earlier responses, 0 before there are any (Ahmadian et al. 2024, sec. 2)."""
    return total / count if count else 0.0


def sums(x_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """(each group's sum, its number of responses), [G]."""
    count_G = torch.bincount(group_N)
    sum_G = torch.zeros(len(count_G), dtype=x_N.dtype, device=x_N.device).index_add(0, group_N, x_N)
    return sum_G, count_G


def mean_of_others(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: the mean of the other k−1 rewards of the same prompt (Kool et al. 2019). Groups may differ in size."""
    sum_G, count_G = sums(reward_N, group_N)
    return (sum_G[group_N] - reward_N) / (count_G[group_N] - 1)


def mean_of_group(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: the mean of all k rewards of the same prompt, its own among them (Shao et al. 2024).

    R less it is (k−1)/k of R less the mean of the others.
    """
    sum_G, count_G = sums(reward_N, group_N)
    return (sum_G / count_G)[group_N]


# -- scales -------------------------------------------------------------------------------------------


def over_group(
    advantage_NT: Tensor, reward_N: Tensor, group_N: Tensor, *, bessel: bool, delta: float
) -> Tensor:
    """Advantages over (σ + δ), σ the standard deviation of the rewards of the same prompt (Shao et al. 2024)."""
    mean_N = mean_of_group(reward_N, group_N)
    square_G, count_G = sums((reward_N - mean_N) ** 2, group_N)
    deviation_G = (square_G / (count_G - int(bessel))).sqrt()
    most_G, least_G = (
        reward_N.new_zeros(len(count_G)).scatter_reduce(0, group_N, reward_N, which, include_self=False)
        for which in ("amax", "amin")
    )
    deviation_N = torch.minimum(deviation_G, most_G - least_G)[group_N]  # the mean of many may be well off
    return over(advantage_NT, deviation_N[:, None], delta, mean_N.abs()[:, None])


def over_draw(advantage_NT: Tensor, reward_N: Tensor, *, bessel: bool, delta: float) -> Tensor:
    """Advantages over (σ + δ), σ the standard deviation of all rewards there are, whatever their prompts."""
    deviation = torch.std(reward_N, correction=int(bessel))
    return over(advantage_NT, deviation, delta, reward_N.abs().max())


def over_batch(advantage_NT: Tensor, mask_NT: Tensor, *, bessel: bool, delta: float, size: Tensor) -> Tensor:
    """(A − mean)/(σ + δ), mean and σ over all chosen steps there are (Hu et al. 2025)."""
    deviation, mean = torch.std_mean(advantage_NT[mask_NT], correction=int(bessel))
    return torch.where(mask_NT, over(advantage_NT - mean, deviation, delta, size), 0.0)


def over(x: Tensor, deviation: Tensor, delta: float, size: Tensor) -> Tensor:
    """x/(deviation + δ), elementwise; 0 where the deviation is but the rounding of numbers of this size."""
    return torch.where(deviation > 1e-6 * size, x / (deviation + delta), 0.0)
