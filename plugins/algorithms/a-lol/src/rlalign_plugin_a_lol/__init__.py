"""Leftover Lunch: learning from logged responses by their advantage (A-LoL, Baheti et al. 2024) or reward (R-LoL).

A response is one action. With A = R − V(x), V the value of the frozen reference, and A⁺ = max(A, 0), the rows with
A⁺ > 0 are what is left to learn from:

    L = mean of  A⁺ · sg(clip(π/π_ref, 1 − ε, 1 + ε)) · (−log π(y))

The weight π/π_ref is a constant: no gradient flows through it, and a clipped response still learns.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from rlalign_plugin_a_lol.value import AttentionValue, FitValue

__all__ = ["ALoL", "AttentionValue", "FitValue", "RLoL"]

Form = Literal["full", "ref-free", "seq", "kl"]


class LeftoverLunch(Component):
    """What both share: the forms of the loss, and what is drawn. A subclass says what a response gains."""

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

    # -- what is drawn ----------------------------------------------------------------------------

    def _draw(self, run: Run, gain: Tensor, what: str) -> None:
        """Draw by what every logged response gains, [rows], and say what is left out."""
        pool = torch.ones_like(gain, dtype=torch.bool)
        if self.config.pool == "first":
            starts = run.draw.row_starts()
            pool[:] = False
            pool[starts[:-1][starts.diff() > 0]] = True
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

    # -- what is learned --------------------------------------------------------------------------

    def gain(self, batch: Batch) -> Tensor:
        """[N]: what each response gains, at least 0."""
        raise NotImplementedError

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        c, logp_NT = self.config, now.full_logprobs_NT
        logp_N = batch.sum_over_chosen(logp_NT)
        gain_N = self.gain(batch)
        weight_N = gain_N if c.weighted else (gain_N > 0).to(gain_N)
        metrics = {
            "nll": -batch.mean_over_tokens(logp_NT.detach()),
            "gain": batch.mean_over_responses(gain_N),
            "kept": batch.mean_over_responses(torch.full_like(gain_N, self.kept)),
        }
        if c.form == "ref-free":
            return Loss(-batch.mean_over_responses(weight_N * logp_N), metrics)
        reference_NT = batch.rollout.columns["reference.full_logprobs"]
        ahead_NT = _steady(run, batch, now) - reference_NT
        ahead_N = batch.sum_over_chosen(ahead_NT)
        metrics["log_ratio"] = batch.mean_over_responses(ahead_N)
        if c.form == "kl":
            penalty_N = c.beta * (logp_N - batch.sum_over_chosen(reference_NT))
            return Loss(batch.mean_over_responses(penalty_N - weight_N * logp_N), metrics)
        if c.form == "seq":
            ratio_NT, clipped_NT = self._clipped(ahead_NT)
            metrics["clipped"] = batch.mean_over_tokens(clipped_NT)
            moved_N = batch.sum_over_chosen(ratio_NT * logp_NT)
            return Loss(-batch.mean_over_responses(weight_N * moved_N), metrics)
        ratio_N, clipped_N = self._clipped(ahead_N)
        metrics["clipped"] = batch.mean_over_responses(clipped_N)
        return Loss(-batch.mean_over_responses(weight_N * ratio_N * logp_N), metrics)

    def _clipped(self, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """(importance weights, whether each was clipped), constants. Clipped as logarithms: nothing overflows."""
        eps = self.config.clip
        if eps is None:
            return log_ratio.exp(), torch.zeros_like(log_ratio)
        within = log_ratio.clamp(math.log1p(-eps), math.log1p(eps))
        return within.exp(), (within != log_ratio).to(log_ratio)


def _steady(run: Run, batch: Batch, now: Outputs) -> Tensor:
    """log π [N,T] as a constant, and without dropout, which would make weights noise."""
    if not run.models.policy.training:
        return now.full_logprobs_NT.detach()
    return run.score("policy", batch.rollout, ["full_logprobs"]).full_logprobs_NT


class ALoL(LeftoverLunch):
    """Advantage leftover lunch: A = R − V(x), of a value that `fit-value` fitted in a phase before."""

    class Config(LeftoverLunch.Config):
        """Options of `a-lol`."""

        clamp: bool = Field(
            True,
            description="gain nothing where the advantage is negative; off, such responses are pushed down, without "
            "a bound (matters only where `draw: uniform` draws them)",
        )

    config: Config
    models = {"value": "value"}

    @hookimpl
    def phase_started(self, run: Run) -> None:
        value = run.models["value"]
        if value.version == 0 and any(True for _ in value.parameters()):
            raise ComponentError("the value was never fitted; put a phase with `fit-value` before this one")

        def advantage(rollout: Rollout, reward: Reward) -> Tensor:
            return reward.total_N - run.score("value", rollout, ["values"]).values_NT[:, 0]

        self._draw(run, run.column("advantage", advantage), "earn more than the value of their prompt")

    def gain(self, batch: Batch) -> Tensor:
        advantage_N = batch.rollout.columns.get("advantage")
        if not isinstance(advantage_N, Tensor):
            raise ComponentError("only logged responses have an advantage here; say `responses: logged`")
        return advantage_N.clamp_min(0) if self.config.clamp else advantage_N


class RLoL(LeftoverLunch):
    """Reward leftover lunch: as A-LoL with the reward itself for the advantage, and so without a value."""

    class Config(LeftoverLunch.Config):
        """Options of `r-lol`."""

    config: Config

    @hookimpl
    def phase_started(self, run: Run) -> None:
        gain = run.column("reward", lambda rollout, reward: reward.total_N)
        if bool((gain < 0).any()):
            raise ComponentError(
                f"{int((gain < 0).sum()):,} of {len(gain):,} rewards are negative, and R-LoL weighs by them; "
                "shift them, or take `a-lol`"
            )
        self._draw(run, gain, "have a reward above 0")

    def gain(self, batch: Batch) -> Tensor:
        return batch.reward.total_N
