"""How well a policy predicts responses that it did not learn from. Legend: N responses, T steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rlalign import Component, Rollout, Run, hookimpl
from rlalign_plugin_imitation.references import references_of


def nll_and_perplexity(logprobs_NT: Tensor, mask_NT: Tensor) -> tuple[float, float]:
    """−log π, a mean over all chosen steps (in float64), and exp of it, infinite where that overflows."""
    total = torch.where(mask_NT, logprobs_NT, 0.0).double().sum()
    nll = -float(total) / int(mask_NT.sum())
    return nll, math.exp(nll) if nll < 700 else math.inf


class HeldOut(Component):
    """A metric for `evaluate.use`: how well the policy predicts the examples' logged responses, else their references.

    `nll` is −log π, a mean over all tokens, ends included; `perplexity` is exp of it.
    """

    responses = "logged"

    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> Mapping[str, float]:
        examples = [e if e.responses else replace(e, responses=references_of(e)) for e in rollout.examples]
        logged = run.models.policy.encode(examples)
        logprobs_NT = run.score("policy", logged, ["full_logprobs"]).full_logprobs_NT
        nll, perplexity = nll_and_perplexity(logprobs_NT, logged.mask_NT)
        return {"nll": nll, "perplexity": perplexity}
