"""What a response's reward is worth: less a baseline, over a deviation. Legend: N responses, G groups, T steps.

`credit_NT` is what each chosen step is paid for: the whole reward, or what came from that step on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_go(reward_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N,T]: the rewards from each chosen step to the end, undiscounted; 0 elsewhere."""
    paid_NT = torch.where(mask_NT, reward_NT, 0.0)
    return torch.where(mask_NT, paid_NT.flip(1).cumsum(1).flip(1), 0.0)


# -- baselines: [N] -----------------------------------------------------------------------------------


def mean_baseline(total: float, count: int) -> float:
    """b: the mean reward of all earlier responses, 0 before there are any (Ahmadian et al. 2024, sec. 2)."""
    return total / count if count else 0.0


def group_sums(x_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """(each group's sum, its number of responses), [G]."""
    count_G = torch.bincount(group_N)
    sum_G = torch.zeros(len(count_G), dtype=x_N.dtype, device=x_N.device).index_add(0, group_N, x_N)
    return sum_G, count_G


def mean_of_others(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: the mean of the other k−1 rewards of the same prompt. Groups may differ in size."""
    sum_G, count_G = group_sums(reward_N, group_N)
    return (sum_G[group_N] - reward_N) / (count_G[group_N] - 1)


def leave_one_out(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: A_i = R_i − mean of the other k−1 rewards of the same prompt (Kool et al. 2019)."""
    return reward_N - mean_of_others(reward_N, group_N)


def mean_of_group(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: the mean of all k rewards of the same prompt, its own among them (Shao et al. 2024).

    Where they are all equal it is that number itself, so that no rounding is left to learn from.
    """
    sum_G, count_G = group_sums(reward_N, group_N)
    return torch.where(tied(reward_N, group_N), reward_N, (sum_G / count_G)[group_N])


def tied(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: whether all responses of the same prompt earned the same."""
    ends = [
        torch.zeros_like(reward_N).scatter_reduce(0, group_N, reward_N, how, include_self=False)
        for how in ("amin", "amax")
    ]
    return (ends[0] == ends[1])[group_N]


# -- scales -------------------------------------------------------------------------------------------


def deviation_of_group(reward_N: Tensor, group_N: Tensor, bessel: bool) -> Tensor:
    """[N]: the standard deviation of the rewards of the same prompt; over k−1 where `bessel`, else over k."""
    sum_G, count_G = group_sums((reward_N - mean_of_group(reward_N, group_N)) ** 2, group_N)
    return (sum_G / (count_G - int(bessel))).sqrt()[group_N]


def over(x: Tensor, deviation: Tensor, delta: float) -> Tensor:
    """x/(deviation + δ), elementwise; 0 where nothing deviates, whatever δ."""
    return torch.where(deviation > 0, x / (deviation + delta), 0.0)


def standardised_over_tokens(credit_NT: Tensor, mask_NT: Tensor, bessel: bool, delta: float) -> Tensor:
    """[N,T]: (x − mean)/(deviation + δ), both over all chosen steps there are (Hu 2025); 0 where all are equal."""
    x_M = credit_NT[mask_NT]
    if len(x_M) < 2 or bool((x_M == x_M[0]).all()):
        return torch.zeros_like(credit_NT)
    deviation, mean = torch.std_mean(x_M, correction=int(bessel))
    return torch.where(mask_NT, (credit_NT - mean) / (deviation + delta), 0.0)
