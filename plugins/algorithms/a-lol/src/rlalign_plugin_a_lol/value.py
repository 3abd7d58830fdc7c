"""The value of a prompt under the frozen reference: a head on the states of the prompt, and how it is fitted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rlalign import (
    Batch,
    Component,
    ComponentError,
    Loss,
    Options,
    Outputs,
    Policy,
    RLAlignError,
    Rollout,
    Run,
    Value,
    hookimpl,
)


class AttentionValue(Value):
    """V(x): a learned query attends to the frozen reference's states of the prompt (Baheti et al. 2024).

    A linear function of what it gathers, through a sigmoid, between the smallest and the largest reward. Padding is
    masked, so that V is the same whatever else stands in a batch.
    """

    class Config(Options):
        """Options of `attention-value`."""

        min: float = Field(0.0, description="the smallest reward there is")
        max: float = Field(1.0, description="the largest")
        heads: int = Field(8, gt=0, description="attention heads; they divide the width of the states")
        dropout: float = Field(
            0.1, ge=0, lt=1, description="of states and of what is gathered, where `train.dropout` is on"
        )

        @model_validator(mode="after")
        def _ordered(self) -> AttentionValue.Config:
            if self.min >= self.max:
                raise ValueError("`min` is below `max`")
            return self

    config: Config
    trunk = "reference"
    reads = "prompts"
    per_prompt = True

    def setup(self, policy: Policy) -> None:
        width = getattr(policy, "width", None)
        if not width:
            raise RLAlignError(
                f"`attention-value` reads a language model's states; a {type(policy).__name__} has none"
            )
        if width % self.config.heads:
            raise RLAlignError(
                f"attention-value: {self.config.heads} heads do not divide {width}; set `heads`"
            )
        like = next(policy.parameters())
        self.query = nn.Parameter(torch.randn(width))
        self.attention = nn.MultiheadAttention(width, self.config.heads, batch_first=True)
        self.out = nn.Linear(width, 1)
        self.drop = nn.Dropout(self.config.dropout)
        self.to(device=like.device, dtype=like.dtype)

    def values(
        self, rollout: Rollout, features: tuple[Tensor, Tensor] | None = None, last: bool = False
    ) -> Tensor:
        assert features is not None
        states_GSC, real_GS = features
        with torch.autocast(states_GSC.device.type, enabled=False):
            h_GSC = self.drop(states_GSC.to(self.query.dtype))
            query_G1C = self.query.expand(len(h_GSC), 1, -1)
            found_G1C, _ = self.attention(
                query_G1C, h_GSC, h_GSC, key_padding_mask=~real_GS, need_weights=False
            )
            share_G = self.out(self.drop(found_G1C[:, 0]))[:, 0].sigmoid()
            value_G: Tensor = self.config.min + (self.config.max - self.config.min) * share_G
        return value_G[rollout.group_N]


class FitValue(Component):
    """Regression of V(x) on what responses of the frozen reference earn: mean of (V(x) − R)².

    Each iteration samples `generation.samples` responses to each of its prompts, sets some prompts aside, and
    learns from the others until the error on those no longer falls; the best weights stay. Its metrics are
    of the prompts set aside: `mse`, `r2`, and `r2_most`, an estimate of the largest R² that any
    function of the prompt could have (from two samples a prompt on).
    """

    class Config(Options):
        """Options of `fit-value`."""

        epochs: int = Field(10, gt=0, description="at most so many times `train.epochs` an iteration")
        held_out: float = Field(0.2, gt=0, lt=1, description="share of the prompts that is set aside")
        patience: int = Field(2, gt=0, description="epochs without a smaller error before it ends")

    config: Config
    needs = ("values",)
    trains = ("value",)
    unit = "response"
    responses = "sampled"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        # The value of the prompt is that of the first step; any other is the same where V knows the prompt alone.
        return Loss(batch.mean_over_responses((now.values_NT[:, 0] - batch.reward.total_N) ** 2))

    @hookimpl
    def update(self, run: Run, batch: Batch) -> Mapping[str, float]:
        self._check_range(run, batch.reward.total_N)
        fitted, aside = self._parts(run, batch)
        best, best_mse = run.parameters(), self._mse(run, aside)
        metrics: Mapping[str, float] = {}
        since, epochs = 0, 0
        while epochs < self.config.epochs and since < self.config.patience:
            metrics = run.learn(fitted)
            epochs += 1
            mse = self._mse(run, aside)
            since += 1
            if mse < best_mse:
                best, best_mse, since = run.parameters(), mse, 0
        run.assign(best)
        return {**metrics, **{f"{self.name}/{k}": v for k, v in self._told(aside, best_mse, epochs).items()}}

    def _parts(self, run: Run, batch: Batch) -> tuple[Batch, Batch]:
        """Some prompts to fit, the others to judge by."""
        prompts = len(batch.rollout.examples)
        count = round(prompts * self.config.held_out)
        if not 2 <= count <= prompts - 2:
            raise ComponentError(
                f"of {prompts} prompts, {count} would be set aside; raise `train.prompts`, or change `held_out`"
            )
        order = torch.randperm(prompts, generator=run.rng("held-out", run.iteration)).to(
            batch.rollout.group_N
        )
        aside_N = torch.isin(batch.rollout.group_N, order[:count])
        return batch.take(~aside_N).as_step(), batch.take(aside_N).as_step()

    def _mse(self, run: Run, batch: Batch) -> float:
        value_N = run.score("value", batch.rollout, ["values"]).values_NT[:, 0]
        return float(((value_N - batch.reward.total_N) ** 2).mean())

    def _told(self, aside: Batch, mse: float, epochs: int) -> dict[str, float]:
        total_N, group_N = aside.reward.total_N.double(), aside.rollout.group_N
        told = {"mse": mse, "epochs": float(epochs)}
        variance = float(total_N.var(correction=0))
        if variance > 0:
            told["r2"] = 1 - mse / variance
            counts_G = torch.bincount(group_N).double()
            if bool((counts_G > 1).all()):
                mean_G = torch.zeros_like(counts_G).index_add(0, group_N, total_N) / counts_G
                within_G = torch.zeros_like(counts_G).index_add(0, group_N, (total_N - mean_G[group_N]) ** 2)
                told["r2_most"] = 1 - float((within_G / (counts_G - 1)).mean()) / variance
        return told

    def _check_range(self, run: Run, total_N: Tensor) -> None:
        """A value between `min` and `max` cannot learn what lies outside."""
        value = run.models["value"]
        if not isinstance(value, AttentionValue):
            return
        least, most = value.config.min, value.config.max
        outside = int(((total_N < least) | (total_N > most)).sum())
        if outside:
            raise ComponentError(
                f"{outside} of {len(total_N)} rewards lie outside [{least:g}, {most:g}] (from "
                f"{float(total_N.min()):.4g} to {float(total_N.max()):.4g}), and `attention-value` stays within; "
                "set its `min` and `max`"
            )
