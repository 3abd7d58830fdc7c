"""The objective of Leftover Lunch (Baheti et al. 2024) in its forms. Legend: N responses, T steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def importance_weight(log_ratio: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """(clip(π/π_ref, 1 − ε, 1 + ε), whether the clip acts), elementwise; a constant of the loss (Baheti et al. 2024).

    Of responses, [N], or of steps, [N,T]. Clipped as logarithms, so that nothing overflows; ε None: not at all.
    """
    if clip is None:
        return log_ratio.exp(), torch.zeros_like(log_ratio)
    within = log_ratio.clamp(math.log1p(-clip), math.log1p(clip))
    return within.exp(), (within != log_ratio).to(log_ratio)


def weighted_logprob(logprobs_NT: Tensor, mask_NT: Tensor, gain_N: Tensor, ratio: Tensor | None) -> Tensor:
    """[N]: gain · ratio · log π(y), whose mean is maximised (Baheti et al. 2024).

    `ratio` is that of responses, [N]; of steps, [N,T], each beside its own log-prob (seq); or None (ref-free).
    """
    if ratio is not None and ratio.ndim == 2:
        return gain_N * torch.where(mask_NT, ratio * logprobs_NT, 0.0).sum(1)
    logp_N = torch.where(mask_NT, logprobs_NT, 0.0).sum(1)
    return gain_N * logp_N if ratio is None else gain_N * ratio * logp_N


def kl_loss(logp_N: Tensor, reference_N: Tensor, gain_N: Tensor, beta: float) -> Tensor:
    """[N]: β·log(π(y)/π_ref(y)) − gain · log π(y), of responses' log-probs (Baheti et al. 2024, A-LoL KL)."""
    return beta * (logp_N - reference_N) - gain_N * logp_N
