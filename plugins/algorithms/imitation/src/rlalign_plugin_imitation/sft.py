"""Supervised learning: raise the likelihood of responses that somebody wrote. Legend: N responses, T steps."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Loss, Options, Outputs, hookimpl


def negative_log_likelihood(logprobs_NT: Tensor, mask_NT: Tensor, *, average: bool = False) -> Tensor:
    """[N]: −log π(y), summed over a response's chosen steps, or with `average` their mean."""
    nll_N = torch.where(mask_NT, -logprobs_NT, 0.0).sum(1)
    return nll_N / mask_NT.sum(1) if average else nll_N


class SFT(Component):
    """Supervised learning: −log π of logged responses, a mean over their tokens."""

    equation = "−log π(y_t), a mean over tokens"

    paper = "Long Ouyang et al., Training language models to follow instructions with human feedback, 2022"

    class Config(Options):
        """Options of `sft`."""

        mean: Literal["tokens", "responses", "sums"] = Field(
            "tokens",
            description="`tokens`: every token counts the same; `responses`: every response does, however long; "
            "`sums`: of responses' sums over their tokens, as papers write the likelihood",
        )

    config: Config
    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "logged"
    scored = False

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        per_token = batch.mean_over_tokens(-now.logprobs_NT)
        loss = per_token
        if self.config.mean != "tokens":
            average = self.config.mean == "responses"
            nll_N = negative_log_likelihood(now.logprobs_NT, batch.rollout.mask_NT, average=average)
            loss = batch.mean_over_responses(nll_N)
        return Loss(loss, {"nll": per_token.detach()})
