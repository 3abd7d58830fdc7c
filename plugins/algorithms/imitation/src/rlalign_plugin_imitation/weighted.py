"""Imitation that weighs: responses by what they earned (`wbc`), tokens by how the policy finds them (`gold`).

Both are policy gradients on data that somebody else wrote. All weights are constants for the gradient.
Legend: N responses, T steps.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Run, hookimpl


def draw_by_reward(run: Run, name: str) -> None:
    """Draw logged responses in proportion to their rewards, with replacement (A-LoL's reward priority)."""
    reward = run.column("reward", lambda rollout, reward: reward.total_N)
    negative = int((reward < 0).sum())
    if negative:
        raise ComponentError(
            f"`{name}`: `priority` draws responses in proportion to their rewards, and {negative} of {len(reward)} are "
            "negative; bound them, `rewards: [logged, clip: {low: 0}]`, or leave `priority` out"
        )
    run.draw.weights(reward)


class WBC(Component):
    """Weighted behaviour cloning: R · −log π(y), log π(y) a sum over tokens, a mean over responses.

    Baheti et al., "Leftover Lunch: Advantage-based Offline RL for Language Models" (2024). R is the advantage
    of each token, which is the response's reward unless another component says otherwise.
    """

    class Config(Options):
        """Options of `wbc`."""

        priority: bool = Field(
            False,
            description="draw logged responses in proportion to their rewards; the reward multiplies the loss still",
        )

    config: Config
    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "logged"

    @hookimpl
    def phase_started(self, run: Run) -> None:
        if self.config.priority:
            draw_by_reward(run, self.name)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        loss_N = -batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)
        nll = -batch.mean_over_tokens(now.logprobs_NT.detach())
        return Loss(batch.mean_over_responses(loss_N), {"nll": nll})


def look_ahead(term_NT: Tensor, mask_NT: Tensor, k: int, beyond: float) -> Tensor:
    """Q_t = Σ_{j≤k} term_{t+j}; a step that nobody chose, past the end above all, has the term `beyond`."""
    chosen_NT = torch.where(mask_NT, term_NT, beyond)
    padded = torch.nn.functional.pad(chosen_NT, (0, k), value=beyond)
    return padded.unfold(1, k + 1, 1).sum(-1)


class GOLD(Component):
    """Generation by off-policy learning from demonstrations: −Σ_t max(u, π̃(y_t)) · Q_t · log π(y_t).

    Pang and He, "Text Generation by Learning from Demonstrations" (2021). π̃ is a copy that lags behind the
    policy, p_MLE the frozen reference: the policy as the phase began. `returns: reward` with `refresh: null` is
    the R-GOLD of Baheti et al. (2024): Q is the response's reward, π̃ the policy itself.
    """

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
            self.models = {"lagging": "lagging"}
            self.needs = (*self.needs, "lagging.logprobs")
        if c.returns in ("p", "s"):
            self.needs = (*self.needs, "reference.logprobs")

    @hookimpl
    def phase_started(self, run: Run) -> None:
        if self.config.priority:
            draw_by_reward(run, self.name)

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        c, rollout = self.config, batch.rollout
        live_NT = now.logprobs_NT.detach()
        if c.refresh is not None:
            tilde_NT = rollout.columns["lagging.logprobs"].exp()
        elif run.models.policy.training:  # dropout is on, and would make weights noise
            tilde_NT = run.score("policy", rollout, ["logprobs"]).logprobs_NT.exp()
        else:
            tilde_NT = live_NT.exp()
        weight_NT = tilde_NT.clamp_min(c.floor)
        return_NT = self.returns(batch)
        loss_N = -batch.sum_over_chosen(weight_NT * return_NT * now.logprobs_NT)
        metrics = {
            "nll": -live_NT,
            "weight": weight_NT,
            "floored": (tilde_NT < c.floor).to(weight_NT),
            "return": return_NT,
        }
        means = {name: batch.mean_over_tokens(x_NT) for name, x_NT in metrics.items()}
        return Loss(batch.mean_over_responses(loss_N), means)

    def returns(self, batch: Batch) -> Tensor:
        """Q [N,T]."""
        c, rollout = self.config, batch.rollout
        if c.returns == "reward":
            return batch.advantage_NT
        if c.returns == "delta":
            return torch.ones_like(batch.advantage_NT)
        mle_NT = rollout.columns["reference.logprobs"]
        term_NT, certain = (mle_NT - c.baseline, -c.baseline) if c.returns == "p" else (mle_NT.exp(), 1.0)
        beyond = max(c.least, certain) if c.past_end else 0.0
        return look_ahead(term_NT.clamp_min(c.least), rollout.mask_NT, c.look_ahead, beyond)

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        if self.config.refresh is not None and run.iteration % self.config.refresh == 0:
            run.models["lagging"].sync(run.models.policy)
