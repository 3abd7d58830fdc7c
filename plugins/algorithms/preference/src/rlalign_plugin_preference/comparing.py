"""What the losses that compare responses share. Legend: N responses, G groups, P pairs, T steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, hookimpl
from rlalign.data.statistics import first_single
from rlalign_plugin_preference.pairs import Which, pairs
from rlalign_plugin_preference.rdo import coefficient

REFERENCE = "reference.full_logprobs"


class Comparing(Component):
    """What the losses on pairs and ranked groups share."""

    needs: Sequence[str] = ("full_logprobs",)
    trains = ("policy",)
    responses = "logged"
    min_samples = 2
    which: Which = "all"

    def each(self, batch: Batch) -> Tensor:
        """[P] True: what a mean over the pairs of a step counts."""
        return torch.ones_like(pairs(batch, self.which)[0], dtype=torch.bool)

    def count(self, batch: Batch) -> Tensor:
        """Pairs of the step."""
        return batch.step.count(self.each).clamp_min(1)

    def refuse_single(self, batch: Batch) -> None:
        """A response that is alone cannot be compared."""
        if single := first_single(batch.rollout):
            raise ComponentError(
                f"`{self.name}` compares responses to one prompt, and example `{single.id}` has one response only; "
                "`unpaired: skip` leaves such out"
            )

    def metrics(
        self, batch: Batch, chosen_P: Tensor, rejected_P: Tensor, reward_N: Tensor, logp_N: Tensor
    ) -> dict[str, Tensor]:
        """What is worth watching, means over the pairs of the step."""
        reward_N, logp_N, count = reward_N.detach(), logp_N.detach(), self.count(batch)
        margin_P = reward_N[chosen_P] - reward_N[rejected_P]
        means = {
            "accuracy": (margin_P > 0).to(margin_P),
            "margin": margin_P,
            "chosen_reward": reward_N[chosen_P],
            "rejected_reward": reward_N[rejected_P],
            "chosen_logprob": logp_N[chosen_P],
            "rejected_logprob": logp_N[rejected_P],
        }
        if (weight_P := coefficient(batch, chosen_P, rejected_P)) is not None:
            means |= {"coefficient": weight_P, "weightless": (weight_P == 0).to(weight_P)}
        unpaired_G = logp_N.new_ones(len(batch.rollout.examples))
        unpaired_G[batch.rollout.group_N[chosen_P]] = 0.0
        return {
            **{name: x_P.sum() / count for name, x_P in means.items()},
            "pairs": logp_N.new_tensor(float(len(chosen_P))),
            "unpaired": batch.mean_over_groups(unpaired_G),
        }


class Pairwise(Comparing):
    """A loss of the margin between the implied rewards of a pair; a mean over the pairs of the step."""

    class Config(Options):
        """Options of every loss on pairs."""

        pairs: Which = Field(
            "best-worst",
            description="of a group of more than two: the best against the worst, or `all`, every better one against "
            "every worse one; equal rewards make no pair",
        )
        unpaired: Literal["error", "skip"] = Field(
            "error",
            description="what a prompt with one response does: end the run, or be left out and counted",
        )

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.which = self.config.pairs

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        """[N]: a response's implied reward."""
        raise NotImplementedError

    def per_pair(self, margin_P: Tensor) -> Tensor:
        """[P]: the loss."""
        raise NotImplementedError

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        if self.config.unpaired == "error":
            self.refuse_single(batch)
        chosen_P, rejected_P = pairs(batch, self.which)
        reward_N = self.implied(batch, now)
        loss_P = self.per_pair(reward_N[chosen_P] - reward_N[rejected_P])
        if (weight_P := coefficient(batch, chosen_P, rejected_P)) is not None:
            loss_P = weight_P * loss_P
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        metrics = self.metrics(batch, chosen_P, rejected_P, reward_N, logp_N)
        return Loss(loss_P.sum() / self.count(batch), metrics)
