"""What CoPG says of two responses y and y' to one prompt (Flet-Berliac et al. 2024).

ΔR = R(y) − R(y') is the difference of their rewards, Δρ that of ρ = log π(y) − log π_ref(y), Δlog π that of log π(y),
all log-probs sums over a response's steps. The functions work elementwise, on differences of any shape.
"""

from __future__ import annotations

from torch import Tensor


def copg_objective(reward_gap: Tensor, rho_gap: Tensor, beta: float) -> Tensor:
    """ℓ = (ΔR − (β/2)Δρ)Δρ, to be maximised, with the gradient through both Δρ.

    That β/2 is β in the gradient, for the regularised reward depends on the policy as well: ∇ℓ = (ΔR − βΔρ)∇Δρ.
    And βℓ = ½ΔR² − ½(ΔR − βΔρ)²: it is a regression of βΔρ onto ΔR.
    """
    return (reward_gap - beta / 2 * rho_gap) * rho_gap


def detached_objective(reward_gap: Tensor, rho_gap: Tensor, logprob_gap: Tensor, beta: float) -> Tensor:
    """ΔR_β · Δlog π, ΔR_β = ΔR − βΔρ without gradient: the gradient of ℓ, and the value of RLOO's objective."""
    return (reward_gap - beta * rho_gap).detach() * logprob_gap


def squared_gap(reward_gap: Tensor, rho_gap: Tensor, beta: float) -> Tensor:
    """ΔR_β² = (ΔR − βΔρ)², to be minimised: 0 at the optimum, with 2β times the gradient of −ℓ."""
    return (reward_gap - beta * rho_gap) ** 2
