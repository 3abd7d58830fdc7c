"""What several methods compute of a batch's rewards and advantages: pure functions, each written once.

Legend: N responses, G groups (prompts), K responses of a group, T steps, P pairs. `rows_GK` and `real_GK` are
those of `rollout.groups()`: the rows of each group, and which of these places hold a response.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign.data.batch import Batch
from rlalign.data.example import Example
from rlalign.data.rollout import TURN, Rollout
from rlalign.errors import ComponentError

# -- rewards ----------------------------------------------------------------------------------------


def per_response(x: Tensor, mask_NT: Tensor) -> Tensor:
    """[N]: `x` itself if it is [N]; the sum over a response's chosen steps if it is [N,T]."""
    return x if x.ndim == 1 else torch.where(mask_NT, x, x.new_zeros(())).sum(1)


def reward_named(batch: Batch, name: str | None, asks: str) -> Tensor:
    """[N]: the raw reward of this name, without its weight; the weighted sum of all where `name` is None.

    `asks` begins the message if there is no such reward: "`at-least` compares".
    """
    if name is None:
        return batch.reward.total_N
    if name not in batch.reward.parts:
        raise ComponentError(f"{asks} `{name}`; the rewards are {', '.join(batch.reward.parts)}")
    return per_response(batch.reward.parts[name], batch.rollout.mask_NT)


def refuse_negative(reward: Tensor, because: str, instead: str) -> None:
    """Stop where a reward is negative, and say why it may not be and what to do."""
    negative = int((reward < 0).sum())
    if negative:
        raise ComponentError(
            f"{negative:,} of {len(reward):,} rewards are negative, and {because}; {instead}"
        )


# -- comparisons within a group ---------------------------------------------------------------------


def turns_of(rollout: Rollout, who: str) -> Tensor:
    """[N,T]: which turn of its episode each step belongs to, for who cannot do without."""
    found = rollout.columns.get(TURN)
    if found is None:
        raise ComponentError(
            f"{who} goes by the turns of episodes, and these responses have none; take a task that is an environment, "
            "or leave it out"
        )
    turn_NT: Tensor = found
    return turn_NT


def first_single(rollout: Rollout) -> Example | None:
    """The first example that has one response only, which nothing can be compared with."""
    single = (torch.bincount(rollout.group_N) == 1).nonzero()[:, 0].tolist()
    return rollout.examples[single[0]] if single else None


def ranked(value_N: Tensor, rows_GK: Tensor, real_GK: Tensor) -> tuple[Tensor, Tensor]:
    """(rows_GK, real_GK) with the best response of each group first, and of equal ones the first in the batch."""
    value_GK = value_N[rows_GK].masked_fill(~real_GK, -torch.inf)
    order_GK = value_GK.argsort(dim=1, descending=True, stable=True)
    return rows_GK.gather(1, order_GK), real_GK.gather(1, order_GK)


def shares_beaten(value_GK: Tensor, real_GK: Tensor) -> Tensor:
    """[G,K]: the share of a group's other responses that each one beats, a tie counted half; alone, a half.

    It is the rank, ties averaged, between 0 for the worst and 1 for the best.
    """
    other_GKK = real_GK[:, None, :] & ~torch.eye(real_GK.shape[1], dtype=torch.bool, device=real_GK.device)
    more_GKK = value_GK[:, :, None] > value_GK[:, None, :]
    same_GKK = value_GK[:, :, None] == value_GK[:, None, :]
    beaten_GK = torch.where(other_GKK, more_GKK + 0.5 * same_GKK, 0.0).sum(2)
    others_GK = other_GKK.sum(2)
    return torch.where(others_GK > 0, beaten_GK / others_GK, 0.5)


def best_and_worst(value_N: Tensor, rows_GK: Tensor, real_GK: Tensor) -> tuple[Tensor, Tensor]:
    """(best_P, worst_P): the rows of both in each group, of equal ones the first.

    A group whose responses all have the same value is left out.
    """
    if rows_GK.numel() == 0:
        return rows_GK.flatten(), rows_GK.flatten()
    value_GK = value_N[rows_GK]
    best_G1 = value_GK.masked_fill(~real_GK, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :1]
    worst_G1 = value_GK.masked_fill(~real_GK, torch.inf).argsort(dim=1, stable=True)[:, :1]
    differ_G = (value_GK.gather(1, best_G1) > value_GK.gather(1, worst_G1))[:, 0]
    return rows_GK.gather(1, best_G1)[differ_G, 0], rows_GK.gather(1, worst_G1)[differ_G, 0]


def better_and_worse(value_N: Tensor, rows_GK: Tensor, real_GK: Tensor) -> tuple[Tensor, Tensor]:
    """(better_P, worse_P): the rows of every two responses of a group whose values differ."""
    value_GK = value_N[rows_GK]
    better_GKK = (value_GK[:, :, None] > value_GK[:, None, :]) & real_GK[:, :, None] & real_GK[:, None, :]
    group_P, better_P, worse_P = better_GKK.nonzero(as_tuple=True)
    return rows_GK[group_P, better_P], rows_GK[group_P, worse_P]


# -- whitening --------------------------------------------------------------------------------------


def moments(x_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the chosen steps."""
    count = mask_NT.sum().clamp_min(1)
    mean = torch.where(mask_NT, x_NT, 0.0).sum() / count
    return mean, torch.where(mask_NT, (x_NT - mean) ** 2, 0.0).sum() / count


def whitened(x_NT: Tensor, mean: Tensor, variance: Tensor, *, shift: bool = True) -> Tensor:
    """(x − mean)/√(variance + 10⁻⁸), elementwise; without `shift` the mean is put back."""
    white_NT = (x_NT - mean) * torch.rsqrt(variance + 1e-8)
    return white_NT if shift else white_NT + mean


def standardised(x_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the chosen steps, with nothing added to the variance; 0 elsewhere.

    Equal numbers become 0: their rounding is no reason for a step. Computed in float64.
    """
    variance, mean = torch.var_mean(x_NT[mask_NT].double(), correction=0)
    deviation = variance.sqrt()
    scale = torch.where(deviation > 1e-6 * mean.abs(), 1 / deviation, 0.0)
    return torch.where(mask_NT, ((x_NT - mean) * scale).to(x_NT), 0.0)


# -- ratios -----------------------------------------------------------------------------------------

Clip = tuple[float | None, float | None]


def clipped(ratio: Tensor, clip: Clip | None) -> Tensor:
    """The ratio within [1 − low, 1 + high]; a bound that is None is none."""
    low, high = clip or (None, None)
    if low is None and high is None:
        return ratio
    return ratio.clamp(None if low is None else 1 - low, None if high is None else 1 + high)


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, clip: Clip | None, largest: float | None = None
) -> tuple[Tensor, Tensor]:
    """(min(ρA, clip(ρ)A), whether a bound acts), elementwise (Schulman et al. 2017, eq. 7).

    With `largest` c, no less than cA where A < 0 (dual clip, Ye et al. 2020).
    """
    ratio = log_ratio.exp()
    free, held = ratio * advantage, clipped(ratio, clip) * advantage
    gain, acts = torch.minimum(free, held), held < free
    if largest is None:
        return gain, acts
    least = torch.where(advantage < 0, largest * advantage, -torch.inf)
    return torch.maximum(gain, least), acts | (gain < least)


def kl_estimates(log_ratio: Tensor) -> dict[str, Tensor]:
    """Schulman's three estimates of KL(π ‖ π_ref) from x = log π − log π_ref at samples of π, elementwise.

    k1 = x, k2 = x²/2, k3 = e⁻ˣ − 1 + x. As a loss on samples of π, k2 has the gradient of KL(π ‖ π_ref), and k3 that
    of KL(π_ref ‖ π), the other way round; k1 has none on average.
    """
    return {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": torch.expm1(-log_ratio) + log_ratio}
