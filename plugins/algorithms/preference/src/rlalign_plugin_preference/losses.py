"""The losses as pure functions, and which responses of a batch are compared.

Legend: N responses, G groups, K responses of a group, P pairs. With ρ = log π(y) − log π_ref(y), a margin
is what the better response of a pair has over the worse one.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlalign import Batch

Which = Literal["best-worst", "all"]


# -- a loss a pair, a response, a group -----------------------------------------------------------------------


def dpo_loss(margin_P: Tensor, smoothing: float = 0.0, robust: bool = False) -> Tensor:
    """−log σ(z), z = β(ρ_w − ρ_l) (Rafailov et al. 2023, eq. 7).

    With label smoothing ε, cDPO: (1−ε)(−log σ(z)) + ε(−log σ(−z)). Robust: ((1−ε)(−log σ(z)) −
    ε(−log σ(−z))) / (1−2ε), whose mean over labels that are wrong with probability ε is DPO's loss on right ones.
    """
    right_P, wrong_P = -logsigmoid(margin_P), -logsigmoid(-margin_P)
    if robust:
        return ((1 - smoothing) * right_P - smoothing * wrong_P) / (1 - 2 * smoothing)
    return (1 - smoothing) * right_P + smoothing * wrong_P


def ipo_loss(difference_P: Tensor, tau: float) -> Tensor:
    """(d − 1/(2τ))², d = ρ_w − ρ_l (Azar et al. 2023)."""
    return (difference_P - 1 / (2 * tau)) ** 2


def simpo_loss(margin_P: Tensor, gamma: float) -> Tensor:
    """−log σ(z − γ), z = β times the difference of mean token log-probs (Meng et al. 2024)."""
    return -logsigmoid(margin_P - gamma)


def log_odds(mean_N: Tensor) -> Tensor:
    """log p/(1 − p), p = exp of a mean token log-prob; finite where p rounds to 1."""
    mean_N = mean_N.clamp_max(-torch.finfo(mean_N.dtype).eps)
    near_N = torch.log(-torch.expm1(mean_N))
    return mean_N - torch.where(mean_N > -math.log(2), near_N, torch.log1p(-mean_N.exp()))


def kto_loss(
    rho_N: Tensor,
    desirable_N: Tensor,
    z: Tensor,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """λ_D(1 − σ(β(ρ − z))) for a desirable response, λ_U(1 − σ(β(z − ρ))) for another (Ethayarajh et al. 2024)."""
    far_N = beta * (rho_N - z)
    return torch.where(desirable_N, desirable * torch.sigmoid(-far_N), undesirable * torch.sigmoid(far_N))


def pro_loss(score_GK: Tensor, reward_GK: Tensor, real_GK: Tensor) -> Tensor:
    """Σ_k −log( e^{s_k/T_kk} / (e^{s_k/T_kk} + Σ_{i>k} e^{s_i/T_ki}) ), groups sorted best first (Song et al. 2023).

    1/T_ki = r_k − r_i and 1/T_kk = max_{i>k}(r_k − r_i): with two responses a logistic loss of slope r_1 − r_2.
    """
    places_K = torch.arange(score_GK.shape[1], device=score_GK.device)
    later_GKK = (places_K[:, None] < places_K) & real_GK[:, None, :] & real_GK[:, :, None]
    gap_GKK = torch.where(later_GKK, reward_GK[:, :, None] - reward_GK[:, None, :], 0.0)
    own_GK = score_GK * gap_GKK.amax(2)
    others_GKK = (score_GK[:, None, :] * gap_GKK).masked_fill(~later_GKK, -torch.inf)
    all_GK = torch.cat([own_GK[..., None], others_GKK], 2).logsumexp(2)
    return (all_GK - own_GK).sum(1)


# -- who is compared with whom ----------------------------------------------------------------------------------


def ranked(batch: Batch) -> tuple[Tensor, Tensor]:
    """(rows_GK, real_GK): each group's responses, the best first, of equals the first in the batch."""
    rows_GK, real_GK = batch.rollout.groups()
    total_GK = batch.reward.total_N[rows_GK].masked_fill(~real_GK, -torch.inf)
    order_GK = total_GK.argsort(dim=1, descending=True, stable=True)
    return rows_GK.gather(1, order_GK), real_GK.gather(1, order_GK)


def pairs(batch: Batch, which: Which) -> tuple[Tensor, Tensor]:
    """(chosen_P, rejected_P): the rows of each pair. Equal rewards make no pair.

    `best-worst`: of each group the best and the worst, of equals the first; `all`: every better and worse.
    """
    rows_GK, real_GK = batch.rollout.groups()
    total_GK = batch.reward.total_N[rows_GK]
    if which == "all":
        better_GKK = (total_GK[:, :, None] > total_GK[:, None, :]) & real_GK[:, :, None] & real_GK[:, None, :]
        group_P, chosen_P, rejected_P = better_GKK.nonzero(as_tuple=True)
        return rows_GK[group_P, chosen_P], rows_GK[group_P, rejected_P]
    if rows_GK.shape[1] == 0:
        return rows_GK.flatten(), rows_GK.flatten()
    high_GK = total_GK.masked_fill(~real_GK, -torch.inf)
    low_GK = total_GK.masked_fill(~real_GK, torch.inf)
    best_G1 = high_GK.argsort(dim=1, descending=True, stable=True)[:, :1]
    worst_G1 = low_GK.argsort(dim=1, stable=True)[:, :1]
    differ_G = (total_GK.gather(1, best_G1) > total_GK.gather(1, worst_G1))[:, 0]
    return rows_GK.gather(1, best_G1)[differ_G, 0], rows_GK.gather(1, worst_G1)[differ_G, 0]


def mean_logprob(batch: Batch, logprobs_NT: Tensor) -> Tensor:
    """[N]: the mean over a response's tokens."""
    return batch.sum_over_chosen(logprobs_NT) / batch.rollout.mask_NT.sum(1)
