"""What A-LoL and R-LoL share: the forms of the loss (Baheti et al. 2024), and which responses are drawn.

Legend: N responses, T steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Run, hookimpl
from rlalign_plugin_a_lol.objective import importance_weight, kl_loss, weighted_logprob

Form = Literal["full", "ref-free", "seq", "kl"]


def first_of_each(starts: Tensor) -> Tensor:
    """[rows] bool: the first response of each example, from where each begins among all ([examples+1])."""
    first = torch.zeros(int(starts[-1]), dtype=torch.bool)
    first[starts[:-1][starts.diff() > 0]] = True
    return first


class LeftoverLunch(Component):
    """What both share: the forms of the loss, and what is drawn. A subclass says what a response gains."""

    paper = (
        "Ashutosh Baheti et al., Leftover lunch: advantage-based offline reinforcement learning for language models, "
        "2024"
    )

    class Config(Options):
        """Options of both."""

        form: Form = Field(
            "full",
            description="`full`: the response's importance weight; `ref-free`: none; `seq`: each token's own; "
            "`kl`: none, but a penalty on leaving the reference",
        )
        clip: float | None = Field(
            0.9, ge=0, lt=1, description="ε: a weight stays within [1 − ε, 1 + ε]; null: wherever it is"
        )
        beta: float = Field(
            0.2,
            ge=0,
            description="β of `kl`. Responses that gain less than β are pushed down, without a bound",
        )
        draw: Literal["priority", "positive", "uniform"] = Field(
            "priority",
            description="`priority`: draw responses in proportion to their gain, over the whole data; `positive`: all "
            "that gain anything alike; `uniform`: all alike",
        )
        weighted: bool = Field(
            True,
            description="multiply a response's loss by its gain; as published also where it is drawn by it, so that "
            "it counts by the square",
        )
        pool: Literal["first", "all"] = Field(
            "first",
            description="`first`: each example's first response (of a pair the chosen one); `all`: every one",
        )

    config: Config
    trains = ("policy",)
    unit = "response"
    responses = "logged"

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        reads = self.config.form != "ref-free"
        self.needs = ("full_logprobs", "reference.full_logprobs") if reads else ("full_logprobs",)
        self.regularises = self.config.form == "kl"
        self.kept = 1.0

    def _draw(self, run: Run, gain: Tensor, what: str) -> None:
        """Draw by what every logged response gains, [rows], and say what is left out."""
        pool = torch.ones_like(gain, dtype=torch.bool)
        if self.config.pool == "first":
            pool = first_of_each(run.draw.row_starts()).to(gain.device)
        kept = pool & (gain > 0)
        count, of = int(kept.sum()), int(pool.sum())
        self.kept = count / of
        aside = (
            f"; {len(gain) - of:,} that are not first are left aside (`pool: all`)" if of < len(gain) else ""
        )
        run.note(f"{self.name}: {count:,} of {of:,} logged responses ({self.kept:.1%}) {what}{aside}")
        if self.config.draw == "uniform":
            if of < len(gain):
                run.draw.weights(pool.double())
            return
        if count == 0:
            raise ComponentError(f"no logged response of {of:,} {what}: there is nothing to learn from")
        run.draw.weights(torch.where(kept, gain, 0.0) if self.config.draw == "priority" else kept.double())
        run.draw.scale(self.kept)

    def gain(self, batch: Batch) -> Tensor:
        """[N]: what each response gains, at least 0."""
        raise NotImplementedError

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        c, logp_NT, mask_NT = self.config, now.full_logprobs_NT, batch.rollout.mask_NT
        gain_N = self.gain(batch)
        weight_N = gain_N if c.weighted else (gain_N > 0).to(gain_N)
        metrics = {
            "nll": -batch.mean_over_tokens(logp_NT.detach()),
            "gain": batch.mean_over_responses(gain_N),
            "kept": batch.mean_over_responses(torch.full_like(gain_N, self.kept)),
        }
        ratio = None
        if c.form != "ref-free":
            reference_NT = batch.rollout.columns["reference.full_logprobs"]
            ahead_NT = _steady(run, batch, now) - reference_NT
            ahead_N = batch.sum_over_chosen(ahead_NT)
            metrics["log_ratio"] = batch.mean_over_responses(ahead_N)
            if c.form == "kl":
                logp_N, reference_N = (batch.sum_over_chosen(x_NT) for x_NT in (logp_NT, reference_NT))
                return Loss(
                    batch.mean_over_responses(kl_loss(logp_N, reference_N, weight_N, c.beta)), metrics
                )
            ratio, clipped = importance_weight(ahead_NT if c.form == "seq" else ahead_N, c.clip)
            mean = batch.mean_over_tokens if c.form == "seq" else batch.mean_over_responses
            metrics["clipped"] = mean(clipped)
        objective_N = weighted_logprob(logp_NT, mask_NT, weight_N, ratio)
        return Loss(-batch.mean_over_responses(objective_N), metrics)


def _steady(run: Run, batch: Batch, now: Outputs) -> Tensor:
    """log π [N,T] as a constant, and without dropout, which would make weights noise."""
    if not run.models.policy.training:
        return now.full_logprobs_NT.detach()
    return run.score("policy", batch.rollout, ["full_logprobs"]).full_logprobs_NT
