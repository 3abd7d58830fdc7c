"""Values and policies under a price on leaving a prior: exactly of a known world, in bounds from what was counted.

Zhang et al., "How Can LLM Guide RL? A Value-Based Approach" (2024). Legend: H turns, h = H + 1, S states, A actions, Z
states to go to: the S, and behind them the end of an episode, worth nothing. A prior of 0 says that an action is not
there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def regularised(q_SA: Tensor, prior_SA: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """(V [S], log π [S,A]): V = λ log Σ_a p(a) exp(Q/λ) and π ∝ p exp(Q/λ), p the prior.

    λ = 0: the best action, the prior decides between equals; λ = ∞: the prior itself.
    """
    log_prior_SA, there_SA = prior_SA.log(), prior_SA > 0
    if math.isinf(lam):
        return (prior_SA * q_SA).sum(1), log_prior_SA
    if lam == 0:
        v_S = q_SA.masked_fill(~there_SA, -math.inf).amax(1)
        best_SA = log_prior_SA.masked_fill(q_SA < v_S[:, None], -math.inf)
        return v_S, best_SA.log_softmax(1)
    score_SA = log_prior_SA + q_SA / lam
    return lam * score_SA.logsumexp(1), score_SA.log_softmax(1)


def divergence(log_pi_SA: Tensor, prior_SA: Tensor) -> Tensor:
    """[S]: KL(π ‖ prior) = Σ_a π (log π − log prior)."""
    pi_SA = log_pi_SA.exp()
    return (pi_SA * (log_pi_SA - prior_SA.log())).masked_fill(pi_SA == 0, 0.0).sum(1)


def expected(p_SAZ: Tensor, v_S: Tensor) -> Tensor:
    """[S,A]: Σ_z p(z) V(z), with nothing behind the end of an episode."""
    return p_SAZ[..., : len(v_S)] @ v_S


def exact(p_HSAZ: Tensor, r_HSA: Tensor, prior_HSA: Tensor, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """(Q [H,S,A], V [H+1,S], log π [H,S,A]) of a known world: Q = r + P V, backward from the last turn."""
    q_HSA, log_pi_HSA = torch.zeros_like(r_HSA), torch.zeros_like(r_HSA)
    v_hS = r_HSA.new_zeros(len(r_HSA) + 1, r_HSA.shape[1])
    for h in reversed(range(len(r_HSA))):
        q_HSA[h] = r_HSA[h] + expected(p_HSAZ[h], v_hS[h + 1])
        v_hS[h], log_pi_HSA[h] = regularised(q_HSA[h], prior_HSA[h], lam)
    return q_HSA, v_hS, log_pi_HSA


def count_bonus(visits_HSA: Tensor, c: float) -> Tensor:
    """[H,S,A]: c (H − h) / √n, n at least 1."""
    left_H11 = torch.arange(len(visits_HSA), 0, -1, dtype=torch.float64)[:, None, None]
    return c * left_H11 / visits_HSA.clamp_min(1).double().sqrt()


class Plan(NamedTuple):
    """What is known of every turn, state and action."""

    q_upper_HSA: Tensor
    q_lower_HSA: Tensor
    upper_hS: Tensor
    """[H+1,S]: V̄."""
    lower_hS: Tensor
    """[H+1,S]: what π is worth at least, its divergence from the prior paid."""
    log_pi_HSA: Tensor

    def width(self, prior_HSA: Tensor) -> Tensor:
        """[H,S,A]: how little is known of each action; −∞ where it is not there."""
        return (self.q_upper_HSA - self.q_lower_HSA).masked_fill(prior_HSA == 0, -math.inf)


def plan(
    counts_HSAZ: Tensor,
    sums_HSA: Tensor,
    prior_HSA: Tensor,
    lam: float,
    bonus_HSA: Tensor,
    reward: tuple[float, float] = (0.0, 1.0),
) -> Plan:
    """Optimistic and pessimistic values from counts and sums of rewards, and the policy that is best for the optimist.

    Q̄ = min(r̂ + P̂ V̄ + b, (H − h) high), Q̲ = max(r̂ + P̂ V̲ − b, (H − h) low); what was never tried has both bounds. V̄
    and π come of Q̄ (`regularised`), V̲ = Σ π Q̲ − λ KL(π ‖ prior).
    """
    low, high = min(reward[0], 0.0), max(reward[1], 0.0)  # an episode may end early
    visits_HSA = counts_HSAZ.sum(3).double()
    tried_HSA, often_HSA = visits_HSA > 0, visits_HSA.clamp_min(1)
    p_HSAZ, r_HSA = counts_HSAZ.double() / often_HSA[..., None], sums_HSA / often_HSA
    bonus_HSA = bonus_HSA * (high - low)
    turns, states, _ = sums_HSA.shape
    q_upper_HSA, q_lower_HSA = torch.zeros_like(r_HSA), torch.zeros_like(r_HSA)
    log_pi_HSA = torch.zeros_like(r_HSA)
    upper_hS, lower_hS = (torch.zeros(turns + 1, states, dtype=r_HSA.dtype) for _ in range(2))
    for h in reversed(range(turns)):
        most, least = (turns - h) * high, (turns - h) * low
        up_SA = r_HSA[h] + expected(p_HSAZ[h], upper_hS[h + 1]) + bonus_HSA[h]
        down_SA = r_HSA[h] + expected(p_HSAZ[h], lower_hS[h + 1]) - bonus_HSA[h]
        q_upper_HSA[h] = up_SA.clamp_max(most).where(tried_HSA[h], most)
        q_lower_HSA[h] = down_SA.clamp_min(least).where(tried_HSA[h], least)
        upper_hS[h], log_pi_HSA[h] = regularised(q_upper_HSA[h], prior_HSA[h], lam)
        price_S = 0.0 if math.isinf(lam) else lam * divergence(log_pi_HSA[h], prior_HSA[h])
        lower_hS[h] = (log_pi_HSA[h].exp() * q_lower_HSA[h]).sum(1) - price_S
    return Plan(q_upper_HSA, q_lower_HSA, upper_hS, lower_hS, log_pi_HSA)
