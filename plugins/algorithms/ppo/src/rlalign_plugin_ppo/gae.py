"""Generalised advantage estimation (Schulman et al. 2016). Legend: N responses, T steps."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward_NT: Tensor,
    values_NT1: Tensor,
    mask_NT: Tensor,
    length_N: Tensor,
    gamma: float,
    lam: float,
    turn_NT: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) at the chosen steps, zero elsewhere.

    Values have one entry more than there are steps: a response's last is that of the state after it, 0 where
    nothing follows. Steps that were given, not chosen, are passed over. With `turn_NT` γ and λ count turns: they act
    where a turn ends, and are 1 within it.
    """
    rows_N = torch.arange(len(reward_NT), device=reward_NT.device)
    next_N, carry_N = values_NT1[rows_N, length_N], torch.zeros_like(values_NT1[:, 0])
    advantage_NT = torch.zeros_like(values_NT1[:, :-1])
    after_N = torch.full_like(length_N, -1)  # the turn of the next chosen step
    for t in reversed(range(reward_NT.shape[1])):
        here_N = mask_NT[:, t]
        once: float | Tensor = gamma
        both: float | Tensor = gamma * lam
        if turn_NT is not None:
            within_N, one_N = turn_NT[:, t] == after_N, torch.ones_like(next_N)
            once, both = (torch.where(within_N, one_N, each * one_N) for each in (gamma, gamma * lam))
            after_N = torch.where(here_N, turn_NT[:, t], after_N)
        delta_N = reward_NT[:, t] + once * next_N - values_NT1[:, t]
        carry_N = torch.where(here_N, delta_N + both * carry_N, carry_N)
        next_N = torch.where(here_N, values_NT1[:, t], next_N)
        advantage_NT[:, t] = torch.where(here_N, carry_N, 0.0)
    return advantage_NT
