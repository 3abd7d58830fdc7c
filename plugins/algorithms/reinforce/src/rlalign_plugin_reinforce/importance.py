"""Weights of responses that another policy sampled: an engine, a precision, a replay. Legend: N responses, T steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign import Batch


def importance_weights(
    now_NT: Tensor, sampled_NT: Tensor, mask_NT: Tensor, cap: float | None, level: str
) -> Tensor:
    """min(π/μ, cap): [N,T] of each token, or [N] of whole responses; 1 where nothing was chosen.

    π is the policy when the iteration began, μ what sampled (truncated importance sampling, Ionides 2008).
    """
    gap_NT = torch.where(mask_NT, now_NT - sampled_NT, 0.0)
    weight = (gap_NT if level == "token" else gap_NT.sum(1)).exp()
    return weight if cap is None else weight.clamp(max=cap)


def weight_metrics(batch: Batch, weight: Tensor, cap: float | None) -> dict[str, Tensor]:
    """Mean and largest weight, the share that the cap cut, and the effective share (Σw)²/(n·Σw²) of the step."""
    mean = batch.mean_over_responses if weight.ndim == 1 else batch.mean_over_tokens
    step = batch.step
    all_M = step.columns["weight"] if weight.ndim == 1 else step.columns["weight"][step.rollout.mask_NT]
    effective = all_M.sum() ** 2 / (len(all_M) * (all_M**2).sum().clamp_min(1e-30))
    return {
        "weight": mean(weight),
        "weight_max": mean(all_M.max().expand_as(weight)),
        "weight_cut": mean((weight == (torch.inf if cap is None else cap)).to(weight)),
        "weight_effective": mean(effective.expand_as(weight)),
    }
