"""Components for the pipelines beside this file: each keeps a state, reads a model, or misbehaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field

from rlalign import (
    Batch,
    Component,
    Example,
    Loss,
    Options,
    Outputs,
    Reward,
    Rollout,
    Run,
    Score,
    Task,
    hookimpl,
)
from rlalign_plugin_reinforce import Reinforce


class Log(Task):
    """Logged responses of a table policy; prompts are long, so that a column needs several pieces."""

    class Config(Options):
        """Options of `Log`."""

        size: int = Field(60, gt=0, description="examples")
        actions: int = Field(5, gt=1, description="actions of the policy")
        steps: int = Field(4, gt=0, description="actions of a response")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        return [self._example(split, i) for i in range(self.config.size)]

    def _example(self, split: str, i: int) -> Example:
        generator = torch.Generator().manual_seed(1000 * len(split) + i)
        shape = (1 + i % 4, self.config.steps)
        tokens = torch.randint(self.config.actions, shape, generator=generator).tolist()
        scores = torch.randn(len(tokens), generator=generator).tolist()
        return Example(
            id=f"{split}-{i}",
            prompt="?" * 1000,
            responses=tuple(" ".join(map(str, response)) for response in tokens),
            scores=tuple(scores),
        )


class Fickle(Component):
    """Zero for every response, NaN for those to one example."""

    class Config(Options):
        """Options of `Fickle`."""

        example: str = Field(description="whose responses it cannot score")

    config: Config

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        bad = [rollout.examples[g].id == self.config.example for g in rollout.group_N.tolist()]
        return Score(torch.where(torch.tensor(bad), torch.nan, 0.0))


class Gain(Component):
    """Offline: draws responses in proportion to what they gained over the policy's own surprise."""

    class Config(Options):
        """Options of `Gain`."""

        column: str = Field("gain", description="the column's name")

    config: Config
    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "logged"

    @hookimpl
    def phase_started(self, run: Run) -> None:
        gain = run.column(self.config.column, partial(self.gain, run))
        run.draw.weights(gain)
        run.draw.scale(float((gain > 0).double().mean()))

    def gain(self, run: Run, rollout: Rollout, reward: Reward) -> torch.Tensor:
        logprobs_NT = run.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT
        surprise_N = torch.where(rollout.mask_NT, logprobs_NT, 0.0).sum(1)
        return (reward.total_N - 0.1 * surprise_N).clamp_min(0)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gain_N = batch.rollout.columns[self.config.column]
        return Loss(-batch.mean_over_responses(gain_N * batch.sum_over_chosen(now.logprobs_NT)))


class Anchored(Component):
    """Imitates scored responses, held to the reference and to a lagging copy that it refreshes."""

    models = {"reference": "frozen", "slow": "lagging"}
    needs = ("logprobs", "reference.full_logprobs", "slow.full_logprobs")
    trains = ("policy",)
    unit = "response"
    responses = "logged"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.iterations = 0

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        columns = batch.rollout.columns
        held = [(now.logprobs_NT - columns[f"{name}.full_logprobs"]) ** 2 for name in ("reference", "slow")]
        imitation = -batch.advantage_NT * now.logprobs_NT
        return Loss(
            batch.mean_over_responses(batch.sum_over_chosen(imitation + 0.1 * held[0] + 0.2 * held[1]))
        )

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        self.iterations += 1
        if self.iterations % 3 == 0:
            run.models["slow"].sync(run.models["policy"])

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self.iterations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.iterations = state["iterations"]


class ForgetfulReinforce(Reinforce):
    """The mutant: a baseline that is not saved."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
