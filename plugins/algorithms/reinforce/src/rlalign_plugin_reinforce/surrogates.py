"""What is maximised at each action, and how actions are averaged. Legend: N responses, T steps.

An action is a token, or the whole response where the ratio is one of whole responses: functions here are given
[N,T] in the one case and [N] in the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign import Batch

Clip = tuple[float | None, float | None]


def per_action(x_NT: Tensor, mask_NT: Tensor, ratio: str) -> Tensor:
    """Log-probs, or their differences, of the actions whose ratio is taken.

    [N,T] of tokens; [N] of responses: their sum (`sequence`), or their mean (`geometric`; Zheng et al. 2025, eq. 7).
    """
    if ratio not in ("sequence", "geometric"):
        return x_NT
    sum_N = torch.where(mask_NT, x_NT, 0.0).sum(1)
    return sum_N if ratio == "sequence" else sum_N / mask_NT.sum(1)


def clipped(ratio: Tensor, clip: Clip | None) -> Tensor:
    """The ratio within [1 − low, 1 + high]; a bound that is None is none."""
    low, high = clip or (None, None)
    if low is None and high is None:
        return ratio
    return ratio.clamp(None if low is None else 1 - low, None if high is None else 1 + high)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: Clip | None) -> tuple[Tensor, Tensor]:
    """(min(ρA, clip(ρ)A), whether the clip acts), elementwise (Schulman et al. 2017, eq. 7)."""
    ratio = log_ratio.exp()
    free, held = ratio * advantage, clipped(ratio, clip) * advantage
    return torch.minimum(free, held), held < free


def clipped_weight(
    log_ratio: Tensor, logprobs: Tensor, advantage: Tensor, clip: Clip | None
) -> tuple[Tensor, Tensor]:
    """(clip(ρ)·A·log π with clip(ρ) a constant, whether the clip acts), elementwise (MiniMax 2025, eq. 4).

    Every action keeps a gradient, those whose ratio left the bounds too.
    """
    ratio = log_ratio.detach().exp()
    weight = clipped(ratio, clip)
    return weight * advantage * logprobs, weight != ratio


def kl_estimate(log_ratio: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(π ‖ π_ref) from x = log π − log π_ref, elementwise (Schulman 2020).

    As a loss on samples of π, k2 = x²/2 has the gradient of KL(π ‖ π_ref), and k3 = e⁻ˣ − 1 + x that of
    KL(π_ref ‖ π), the other way round; k1 = x has none on average.
    """
    return log_ratio**2 / 2 if estimator == "k2" else torch.expm1(-log_ratio) + log_ratio


def average(batch: Batch, x: Tensor, mean: str, longest: int) -> Tensor:
    """This piece's share of the step's mean of `x`: [N,T] over tokens, or [N] of whole responses.

    `response-sums`: Σ over a response's tokens, mean over responses (Williams 1992). `response-means`: mean over
    its tokens, mean over responses (Shao et al. 2024). `tokens`: mean over all tokens of the step (Yu et al.
    2025). `constant`: Σ over its tokens / `longest`, mean over responses (Liu et al. 2025).
    """
    if x.ndim == 1:
        return batch.mean_over_responses(x)
    if mean == "tokens":
        return batch.mean_over_tokens(x)
    sum_N = batch.sum_over_chosen(x)
    if mean == "response-means":
        sum_N = sum_N / batch.rollout.mask_NT.sum(1)
    elif mean == "constant":
        sum_N = sum_N / longest
    return batch.mean_over_responses(sum_N)
