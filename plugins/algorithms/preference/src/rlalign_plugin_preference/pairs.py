"""Which responses are compared. Legend: N responses, G groups, K responses of a group, P pairs, T steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlalign import Batch
from rlalign.data.statistics import best_and_worst

Which = Literal["best-worst", "all"]


def better_and_worse(value_N: Tensor, rows_GK: Tensor, real_GK: Tensor) -> tuple[Tensor, Tensor]:
    """(better_P, worse_P): the rows of every two responses of a group whose values differ."""
    value_GK = value_N[rows_GK]
    better_GKK = (value_GK[:, :, None] > value_GK[:, None, :]) & real_GK[:, :, None] & real_GK[:, None, :]
    group_P, better_P, worse_P = better_GKK.nonzero(as_tuple=True)
    return rows_GK[group_P, better_P], rows_GK[group_P, worse_P]


def pairs(batch: Batch, which: Which) -> tuple[Tensor, Tensor]:
    """(chosen_P, rejected_P): the rows of each pair. Equal rewards make no pair.

    `best-worst`: of each group the best and the worst, of equals the first; `all`: every better and worse.
    """
    compare = better_and_worse if which == "all" else best_and_worst
    return compare(batch.reward.total_N, *batch.rollout.groups())


def mean_logprob(logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N]: the mean of a response's log-probs over its chosen steps."""
    return torch.where(mask_NT, logprobs_NT, 0.0).sum(1) / mask_NT.sum(1)
