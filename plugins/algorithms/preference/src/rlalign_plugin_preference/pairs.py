"""Which responses are compared. Legend: N responses, G groups, K responses of a group, P pairs, T steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlalign import Batch
from rlalign.data.statistics import best_and_worst, better_and_worse

Which = Literal["best-worst", "all"]


def pairs(batch: Batch, which: Which) -> tuple[Tensor, Tensor]:
    """(chosen_P, rejected_P): the rows of each pair. Equal rewards make no pair.

    `best-worst`: of each group the best and the worst, of equals the first; `all`: every better and worse.
    """
    compare = better_and_worse if which == "all" else best_and_worst
    return compare(batch.reward.total_N, *batch.rollout.groups())


def mean_logprob(logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N]: the mean of a response's log-probs over its chosen steps."""
    return torch.where(mask_NT, logprobs_NT, 0.0).sum(1) / mask_NT.sum(1)
