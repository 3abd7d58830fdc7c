"""What REINFORCE and RLOO share: the whole response is one action. Legend: N responses, T steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign import Batch, Component, Loss, Outputs, hookimpl


def reinforce_objective(logprobs_NT: Tensor, advantage_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N]: A · log π(y), log π(y) summed over the chosen steps; its gradient is REINFORCE's (Williams 1992).

    `advantage_NT` is a constant, the same at every step of a response unless a component says otherwise.
    """
    return torch.where(mask_NT, advantage_NT * logprobs_NT, 0.0).sum(1)


class PolicyGradient(Component):
    """The loss is minus the objective, a mean over responses; a subclass says what the advantage is."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "sampled"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gain_N = reinforce_objective(now.logprobs_NT, batch.advantage_NT, batch.rollout.mask_NT)
        return Loss(-batch.mean_over_responses(gain_N))
