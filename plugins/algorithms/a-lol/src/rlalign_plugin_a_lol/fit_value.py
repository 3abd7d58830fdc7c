"""How the value of a prompt is fitted to what responses of the frozen reference earn.

Legend: N responses, G groups (prompts).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Learner, Loss, Options, Outputs, Run, hookimpl
from rlalign_plugin_a_lol.attention_value import AttentionValue


def squared_error(value_N: Tensor, reward_N: Tensor) -> Tensor:
    """[N]: (V(x) − R)² (Baheti et al. 2024, sec. 3)."""
    return (value_N - reward_N) ** 2


def fit_quality(reward_N: Tensor, group_N: Tensor, mse: float) -> dict[str, float]:
    """R² of a value with this mean squared error, and `r2_most`, an estimate of the largest that there could be.

    The largest is that of the expected reward of each prompt: 1 − (mean variance within prompts)/(variance of all).
    It needs two responses per prompt. Without variance there is neither.
    """
    total_N = reward_N.double()
    variance = float(total_N.var(correction=0))
    if not variance > 0:
        return {}
    found = {"r2": 1 - mse / variance}
    counts_G = torch.bincount(group_N).double()
    if bool((counts_G > 1).all()):
        mean_G = torch.zeros_like(counts_G).index_add(0, group_N, total_N) / counts_G
        within_G = torch.zeros_like(counts_G).index_add(0, group_N, (total_N - mean_G[group_N]) ** 2)
        found["r2_most"] = 1 - float((within_G / (counts_G - 1)).mean()) / variance
    return found


class FitValue(Component):
    """Regression of V(x) on what responses of the frozen reference earn: mean of (V(x) − R)².

    Each iteration samples `generation.samples` responses to each of its prompts, sets some prompts aside, and
    learns from the others until the error on those no longer falls; the best weights stay. Its metrics are
    of the prompts set aside: `mse`, `r2`, and `r2_most`, an estimate of the largest R² that any
    function of the prompt could have (it needs two samples per prompt).
    """

    equation = "(V(x) − R)²"

    paper = (
        "Ashutosh Baheti et al., Leftover lunch: advantage-based offline reinforcement learning for language models, "
        "2024"
    )

    class Config(Options):
        """Options of `fit-value`."""

        epochs: int = Field(10, gt=0, description="at most this many times `train.epochs` per iteration")
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
        return Loss(batch.mean_over_responses(squared_error(now.values_NT[:, 0], batch.reward.total_N)))

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
        self._check_range(run, batch.reward.total_N)
        fitted, aside = self._parts(run, batch)
        best, best_mse = learner.parameters(), self._mse(run, aside)
        metrics: Mapping[str, float] = {}
        since, epochs = 0, 0
        while epochs < self.config.epochs and since < self.config.patience:
            metrics = learner.learn(fitted)
            epochs += 1
            mse = self._mse(run, aside)
            since += 1
            if mse < best_mse:
                best, best_mse, since = learner.parameters(), mse, 0
        learner.assign(best)
        found = fit_quality(aside.reward.total_N, aside.rollout.group_N, best_mse)
        found = {"mse": best_mse, "epochs": float(epochs), **found}
        return {**metrics, **{f"{self.name}/{name}": value for name, value in found.items()}}

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
        value_N = run.score("value", batch.rollout, ["state_values"]).state_values_NT1[:, 0]
        return float(squared_error(value_N, batch.reward.total_N).mean())

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
