"""How often a prediction is right, and whether it is as sure as it should be. Legend: n predictions, K classes."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 10


def expected_calibration_error(confidence_n: Tensor, right_n: Tensor, bins: int = BINS) -> float:
    """Σ_b (n_b/n)·|accuracy_b − confidence_b| over bins of equal width (Guo et al. 2017, eq. 3)."""
    place_n = (confidence_n * bins).long().clamp(0, bins - 1)
    gap_n = right_n.double() - confidence_n.double()
    gap_b = torch.zeros(bins, dtype=torch.float64).index_add(0, place_n.cpu(), gap_n.cpu())
    return float(gap_b.abs().sum()) / len(confidence_n)


def brier_score(probs_nK: Tensor, label_n: Tensor) -> float:
    """Mean of Σ_k (p_k − y_k)² (Brier 1950): 0 where sure and right, 2 where sure and wrong."""
    target_nK = torch.nn.functional.one_hot(label_n, probs_nK.shape[1]).double()
    return float((probs_nK.double() - target_nK).square().sum(1).mean())


def of_labels(logprobs_nK: Tensor, label_n: Tensor) -> dict[str, float]:
    """Accuracy, calibration of the most probable class, Brier score and −log p of the right label."""
    probs_nK = logprobs_nK.exp()
    confidence_n, guess_n = probs_nK.max(1)
    right_n = guess_n == label_n
    return {
        "accuracy": float(right_n.double().mean()),
        "ece": expected_calibration_error(confidence_n, right_n),
        "brier": brier_score(probs_nK, label_n),
        "nll": -float(logprobs_nK.gather(1, label_n[:, None]).double().mean()),
    }


def of_pairs(margin_n: Tensor) -> dict[str, float]:
    """The same of pairs whose better response is said to be better with probability σ(margin)."""
    better_n = margin_n.double().sigmoid()
    right_n = (margin_n > 0).double() + 0.5 * (margin_n == 0).double()
    confidence_n = torch.maximum(better_n, 1 - better_n)
    return {
        "accuracy": float(right_n.mean()),
        "ece": expected_calibration_error(confidence_n, right_n),
        "brier": float(2 * (1 - better_n).square().mean()),
        "nll": float(torch.nn.functional.softplus(-margin_n.double()).mean()),
        "margin": float(margin_n.double().mean()),
    }
