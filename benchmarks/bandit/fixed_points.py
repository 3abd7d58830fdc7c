"""Where each method ends on the bandit, worked out without training. Legend: A arms, AA pairs of them (y, y')."""

from __future__ import annotations

import numpy
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[numpy.float64]
STILL = 1e-14
"""A gradient as small has come to rest."""


def optimum(reward_A: ArrayLike, reference_A: ArrayLike, beta: float) -> Numbers:
    """π* ∝ π_ref exp(R/β), which maximises E[R] − β KL(π‖π_ref)."""
    return _normal(numpy.log(_floats(reference_A)) + _floats(reward_A) / beta)


def objective(policy_A: ArrayLike, reward_A: ArrayLike, reference_A: ArrayLike, beta: float) -> float:
    """J(π) = E[R] − β KL(π‖π_ref)."""
    policy = _floats(policy_A)
    return float(policy @ (_floats(reward_A) - beta * numpy.log(policy / _floats(reference_A))))


def distance(one_A: ArrayLike, other_A: ArrayLike) -> float:
    """Total variation: half the sum of absolute differences."""
    return float(abs(_floats(one_A) - _floats(other_A)).sum() / 2)


def least_squares(pairs_AA: ArrayLike, wanted_AA: ArrayLike, reference_A: ArrayLike, beta: float) -> Numbers:
    """Where β(ρ(y) − ρ(y')) is regressed onto `wanted` over these pairs, ρ = log π/π_ref.

    CoPG wants R(y) − R(y'), which some ρ always meets, so that pairs do not matter; IPO wants P(y before y') − ½.
    """
    weight = numpy.sqrt(_floats(pairs_AA)).ravel()
    one = numpy.eye(len(_floats(reference_A)))
    gaps = beta * (one[:, None] - one[None, :]).reshape(-1, len(one))
    rho, *_ = numpy.linalg.lstsq(weight[:, None] * gaps, weight * _floats(wanted_AA).ravel(), rcond=None)
    return _normal(numpy.log(_floats(reference_A)) + rho)


def naive(
    pairs_AA: ArrayLike, reward_A: ArrayLike, reference_A: ArrayLike, beta: float, baseline: str = "none"
) -> Numbers:
    """Where Σ (R_β − b) ∇log π over both arms of these pairs comes to rest, going up from π_ref."""
    pairs, reward, reference = _floats(pairs_AA), _floats(reward_A), _floats(reference_A)
    pulled, logits = (pairs.sum(0) + pairs.sum(1)) / pairs.sum(), numpy.log(reference)
    for _ in range(100_000):
        policy = _normal(logits)
        regularised = reward - beta * numpy.log(policy / reference)
        b = {"none": 0.0, "value": policy @ reward, "regularised": policy @ regularised}[baseline]
        gain = pulled * (regularised - b)
        step = gain - policy * gain.sum()
        if abs(step).max() < STILL:
            break
        logits = logits + step
    return policy


def gaps(reward_A: ArrayLike) -> Numbers:
    """R(y) − R(y')."""
    reward = _floats(reward_A)
    return reward[:, None] - reward[None, :]


def preferred(reward_A: ArrayLike) -> Numbers:
    """P(y before y') = σ(R(y) − R(y'))."""
    return numpy.asarray(1 / (1 + numpy.exp(-gaps(reward_A))))


def _normal(logits: Numbers) -> Numbers:
    weights = numpy.exp(logits - logits.max())
    return numpy.asarray(weights / weights.sum())


def _floats(x: ArrayLike) -> Numbers:
    return numpy.asarray(x, dtype=numpy.float64)
