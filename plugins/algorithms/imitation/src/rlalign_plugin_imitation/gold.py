"""GOLD: imitation that weighs tokens by how probable the policy finds them, and by what follows them.

Pang and He, "Text Generation by Learning from Demonstrations" (2021). A policy gradient on data that somebody
else wrote: all weights are constants for the gradient. Legend: N responses, T steps.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from rlalign import Batch, Component, Lagging, Loss, Options, Outputs, Run, hookimpl
from rlalign_plugin_imitation.wbc import draw_by_reward


def look_ahead(term_NT: Tensor, mask_NT: Tensor, k: int, beyond: float) -> Tensor:
    """Q_t = Σ_{j≤k} term_{t+j}; a step that nobody chose, past the end above all, has the term `beyond`."""
    chosen_NT = torch.where(mask_NT, term_NT, beyond)
    padded = torch.nn.functional.pad(chosen_NT, (0, k), value=beyond)
    return padded.unfold(1, k + 1, 1).sum(-1)


def gold_return(
    mle_NT: Tensor, mask_NT: Tensor, k: int, least: float, baseline: float | None, past_end: bool
) -> Tensor:
    """Q [N,T] of GOLD-p: Σ_{j≤k} max(c, log p_MLE − b); without a baseline b that of GOLD-s: Σ_{j≤k} max(c, p_MLE).

    `mle_NT` is log p_MLE, `least` c. With `past_end` each step after the end counts as certain, else as 0.
    """
    term_NT, certain = (mle_NT.exp(), 1.0) if baseline is None else (mle_NT - baseline, -baseline)
    return look_ahead(term_NT.clamp_min(least), mask_NT, k, max(least, certain) if past_end else 0.0)


def gold_loss(logprobs_NT: Tensor, weight_NT: Tensor, return_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N]: −Σ_t max(u, π̃(y_t)) · Q_t · log π(y_t); `weight_NT` is max(u, π̃) (Pang and He 2021, algorithm 1)."""
    return -torch.where(mask_NT, weight_NT * return_NT * logprobs_NT, 0.0).sum(1)


class GOLD(Component):
    """Generation by off-policy learning from demonstrations: −Σ_t max(u, π̃(y_t)) · Q_t · log π(y_t).

    Pang and He, "Text Generation by Learning from Demonstrations" (2021). π̃ is a copy that lags behind the
    policy, p_MLE the frozen reference: the policy as the phase began. `returns: reward` with `refresh: null` is
    the R-GOLD of Baheti et al. (2024): Q is the response's reward, π̃ the policy itself.
    """

    equation = "−Σ_t max(u, π̃(y_t)) Q_t log π(y_t)"

    paper = "Richard Yuanzhe Pang and He He, Text generation by learning from demonstrations, 2021"

    class Config(Options):
        """Options of `gold`."""

        returns: Literal["delta", "p", "s", "reward"] = Field(
            description="Q: `delta`: 1; `p`: sum of max(c, log p_MLE − b) over a token and those after it; `s`: sum of "
            "max(c, p_MLE); `reward`: the response's reward"
        )
        floor: float = Field(0.1, ge=0, le=1, description="u, the least weight of a token; with `p` 0")
        least: float = Field(0.0, description="c, the least that a token adds to Q; with `p` 1")
        baseline: float = Field(-10.0, description="b of `p`")
        look_ahead: int = Field(5, ge=0, description="tokens after a token that count in its Q")
        past_end: bool = Field(
            False,
            description="count tokens past the end as tokens of probability 1, as the released code does",
        )
        refresh: int | None = Field(
            5000,
            ge=1,
            description="iterations after which π̃ takes the policy's weights; null: π̃ is the policy as it is",
        )
        priority: bool = Field(
            False, description="draw logged responses in proportion to their rewards, whatever Q is"
        )

        @model_validator(mode="before")
        @classmethod
        def _as_published(cls, said: Any) -> Any:
            by_log_prob = isinstance(said, dict) and said.get("returns") == "p"
            return {"floor": 0.0, "least": 1.0, **said} if by_log_prob else said

    config: Config
    trains = ("policy",)
    unit = "response"
    responses = "logged"

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        c = self.config
        self.scored = c.returns == "reward" or c.priority
        self.needs = ("logprobs",)
        if c.refresh is not None:
            self.models = {"lagging": Lagging(every=c.refresh)}
            self.needs = (*self.needs, "lagging.logprobs")
        if c.returns in ("p", "s"):
            self.needs = (*self.needs, "reference.logprobs")

    @hookimpl
    def phase_started(self, run: Run) -> None:
        if self.config.priority:
            draw_by_reward(run, self.name)

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        tilde_NT, return_NT = self._lagging_probs(run, batch, now), self.returns(batch)
        weight_NT = tilde_NT.clamp_min(self.config.floor)
        loss_N = gold_loss(now.logprobs_NT, weight_NT, return_NT, batch.rollout.mask_NT)
        metrics = {
            "nll": -now.logprobs_NT.detach(),
            "weight": weight_NT,
            "floored": (tilde_NT < self.config.floor).to(weight_NT),
            "return": return_NT,
        }
        means = {name: batch.mean_over_tokens(x_NT) for name, x_NT in metrics.items()}
        return Loss(batch.mean_over_responses(loss_N), means)

    def _lagging_probs(self, run: Run, batch: Batch, now: Outputs) -> Tensor:
        """π̃ [N,T], a constant."""
        if self.config.refresh is not None:
            lagging_NT: Tensor = batch.rollout.columns["lagging.logprobs"]
            return lagging_NT.exp()
        if run.models.policy.training:  # dropout is on, and would make weights noise
            return run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT.exp()
        return now.logprobs_NT.detach().exp()

    def returns(self, batch: Batch) -> Tensor:
        """Q [N,T]."""
        c, rollout = self.config, batch.rollout
        if c.returns == "reward":
            return batch.advantage_NT
        if c.returns == "delta":
            return torch.ones_like(batch.advantage_NT)
        baseline = c.baseline if c.returns == "p" else None
        mle_NT = rollout.columns["reference.logprobs"]
        return gold_return(mle_NT, rollout.mask_NT, c.look_ahead, c.least, baseline, c.past_end)
