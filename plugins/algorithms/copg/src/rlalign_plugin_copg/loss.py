"""What CoPG says of two responses to one prompt (Flet-Berliac et al. 2024), and which two it compares.

Legend: N responses, G groups, K responses of a group. `_GKK` holds a number for every two responses of a group.
ΔR is the difference of their rewards, Δρ that of ρ = log π(y) − log π_ref(y), sums over the chosen steps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def copg_objective(reward_gap: Tensor, rho_gap: Tensor, beta: float) -> Tensor:
    """ℓ = (ΔR − (β/2)Δρ)Δρ, to be maximised with its gradient through both Δρ (Flet-Berliac et al. 2024, eq. 5).

    β/2 here is β in the gradient, because the regularised reward depends on the policy too:
    ∇ℓ = (ΔR − βΔρ)∇Δρ. And βℓ = ½ΔR² − ½(ΔR − βΔρ)²: a regression of βΔρ onto ΔR.
    """
    return (reward_gap - beta / 2 * rho_gap) * rho_gap


def detached_objective(reward_gap: Tensor, rho_gap: Tensor, logprob_gap: Tensor, beta: float) -> Tensor:
    """ΔR_β · Δlog π with ΔR_β = ΔR − βΔρ a constant: the same gradient as ℓ; the value is that of RLOO."""
    return (reward_gap - beta * rho_gap).detach() * logprob_gap


def squared_gap(reward_gap: Tensor, rho_gap: Tensor, beta: float) -> Tensor:
    """(ΔR − βΔρ)², to be minimised: ΔR² − 2βℓ, with 2β times the gradient of −ℓ. At the optimum it is 0."""
    return (reward_gap - beta * rho_gap) ** 2


def gaps(x_N: Tensor, rows_GK: Tensor) -> Tensor:
    """[G,K,K]: x of each response less that of each of its siblings."""
    x_GK = x_N[rows_GK]
    return x_GK[:, :, None] - x_GK[:, None, :]


def compared(real_GK: Tensor, source_GK: Tensor | None = None) -> Tensor:
    """[G,K,K]: every two different responses of a group; with sources, those of different ones."""
    other_KK = ~torch.eye(real_GK.shape[1], dtype=torch.bool, device=real_GK.device)
    both_GKK = real_GK[:, :, None] & real_GK[:, None, :] & other_KK
    return both_GKK if source_GK is None else both_GKK & (source_GK[:, :, None] != source_GK[:, None, :])


def mean_over_siblings(x_GKK: Tensor, among_GKK: Tensor, count_GKK: Tensor) -> Tensor:
    """[G,K]: the sum of x over those `among` a response's siblings, by the number of those counted."""
    return torch.where(among_GKK, x_GKK, 0.0).sum(2) / count_GKK.sum(2).clamp_min(1)
