"""Wrappers of `reward`: each changes the scores of the items above it."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlalign.data.batch import Reward, Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.data.statistics import per_response, shares_beaten
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl

Scores = Generator[None, list[Score], list[Score]]


class MissingEos(Component):
    """A response that did not end by itself gets a fixed score instead of its own.

    As in lm-human-preferences: the score of a response without the end is −1, whatever the reward model
    says. Scores paid at every step stay as they are.
    """

    class Config(Options):
        """Options of `missing-eos`."""

        score: float = Field(-1.0, description="what an unfinished response earns")

    config: Config

    @hookimpl(wrapper=True)
    def reward(self, rollout: Rollout) -> Scores:
        scores = yield
        return [
            replace(s, value=torch.where(rollout.finished_N, s.value, self.config.score))
            if s.value.ndim == 1
            else s
            for s in scores
        ]


class Gate(Component):
    """Other scores count only where one of them reaches a threshold."""

    class Config(Options):
        """Options of `gate`."""

        by: str = Field(description="the score that opens the gate, by name")
        at_least: float = Field(description="where the gate opens")
        otherwise: float = Field(0.0, description="what the other scores become where it stays shut")

    config: Config

    @hookimpl(wrapper=True)
    def reward(self, rollout: Rollout) -> Scores:
        scores = yield
        keys = [s for s in scores if s.name == self.config.by]
        if not keys:
            names = ", ".join(str(s.name) for s in scores)
            raise ComponentError(
                f"`{self.name}` is opened by `{self.config.by}`; the scores above it are {names}"
            )
        open_N = per_response(keys[0].value, rollout.mask_NT) >= self.config.at_least
        return [s if s is keys[0] else replace(s, value=self._shut(s, open_N)) for s in scores]

    def _shut(self, score: Score, open_N: Tensor) -> Tensor:
        return torch.where(
            open_N if score.value.ndim == 1 else open_N[:, None], score.value, self.config.otherwise
        )


class Clip(Component):
    """Scores held between two bounds."""

    class Config(Options):
        """Options of `clip`."""

        low: float | None = Field(None, description="the least score; null: no bound")
        high: float | None = Field(None, description="the largest score; null: no bound")

        @model_validator(mode="after")
        def _ordered(self) -> Clip.Config:
            if self.low is None and self.high is None:
                raise ValueError("give `low`, `high` or both")
            if self.low is not None and self.high is not None and self.low > self.high:
                raise ValueError("`low` is above `high`")
            return self

    config: Config

    @hookimpl(wrapper=True)
    def reward(self) -> Scores:
        scores = yield
        return [replace(s, value=s.value.clamp(self.config.low, self.config.high)) for s in scores]


class Normalise(Component):
    """Scores on a common scale: less the mean and over the standard deviation, between 0 and 1, or as ranks.

    Over the run, only finished iterations count, so that a response's score does not depend on how a batch was
    cut; in the first iteration scores pass unchanged. Scores paid at every step stay as they are.
    """

    class Config(Options):
        """Options of `normalise`."""

        by: Literal["z-score", "min-max", "rank"] = Field(
            "z-score",
            description="(x − mean)/deviation; (x − least)/(largest − least); or the share of its "
            "group that a response beats, ties counted half",
        )
        over: Literal["run", "group"] | None = Field(
            None,
            description="what a score is compared with: all of the run's finished iterations, or its own group; "
            "null: the run, and for ranks the group",
        )
        shift: bool = Field(
            True, description="z-score: subtract the mean, not only divide by the standard deviation"
        )
        eps: float = Field(1e-8, gt=0, description="z-score: added to the variance")

        @model_validator(mode="after")
        def _fits(self) -> Normalise.Config:
            if self.by == "rank" and self.over == "run":
                raise ValueError("`by: rank` compares the responses of a group; leave out `over: run`")
            if self.by != "z-score" and {"shift", "eps"} & self.model_fields_set:
                raise ValueError(f"`shift` and `eps` belong to `by: z-score`, not to `by: {self.by}`")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.over = config.over or ("group" if config.by == "rank" else "run")
        self.seen: dict[str, list[float]] = {}
        """By score: how many responses; the sum of their scores, of the squares; the least, the largest."""

    @hookimpl(wrapper=True)
    def reward(self, rollout: Rollout) -> Scores:
        scores = yield
        scaled = self._in_run if self.over == "run" else self._in_group
        return [scaled(s, rollout) if s.value.ndim == 1 else s for s in scores]

    def _in_group(self, score: Score, rollout: Rollout) -> Score:
        rows_GK, real_GK = rollout.groups()
        x_GK = score.value[rows_GK]
        if self.config.by == "rank":
            found_GK = shares_beaten(x_GK, real_GK)
        elif self.config.by == "min-max":
            least_G1 = x_GK.masked_fill(~real_GK, torch.inf).amin(1, keepdim=True)
            largest_G1 = x_GK.masked_fill(~real_GK, -torch.inf).amax(1, keepdim=True)
            found_GK = _between(x_GK, least_G1, largest_G1)
        else:
            x_GK = x_GK.double()
            count_G1 = real_GK.sum(1, keepdim=True)
            mean_G1 = torch.where(real_GK, x_GK, 0.0).sum(1, keepdim=True) / count_G1
            variance_G1 = torch.where(real_GK, (x_GK - mean_G1) ** 2, 0.0).sum(1, keepdim=True) / count_G1
            found_GK = self._z(x_GK, mean_G1, (variance_G1 + self.config.eps).sqrt())
        value = score.value.clone()
        value[rows_GK[real_GK]] = found_GK[real_GK].to(value)
        return replace(score, value=value, metrics={**score.metrics, f"{self.name}/raw": score.value})

    def _in_run(self, score: Score, rollout: Rollout) -> Score:
        raw = score.value
        score = replace(score, metrics={**score.metrics, f"{self.name}/raw": raw})
        if score.name not in self.seen:
            return score
        count, total, squares, least, largest = self.seen[score.name]
        if self.config.by == "min-max":
            return replace(score, value=_between(raw, *raw.new_tensor([least, largest])))
        mean = total / count
        scale = math.sqrt(max(0.0, squares / count - mean**2) + self.config.eps)
        return replace(score, value=self._z(raw, mean, scale))

    def _z(self, x: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
        return (x - (mean if self.config.shift else 0.0)) / scale

    @hookimpl
    def iteration_done(self, rollout: Rollout, reward: Reward) -> None:
        if self.over != "run" or not bool(rollout.new_N.any()):
            return
        reward = reward.take(rollout.new_N)  # the others were counted when they were new
        mine = f"/{self.name}/raw"
        for key, raw_N in reward.metrics.items():
            if not key.endswith(mine):
                continue
            held = self.seen.setdefault(key.removesuffix(mine), [0.0, 0.0, 0.0, math.inf, -math.inf])
            x_N, count = raw_N.double(), float(len(raw_N))
            for i, value in enumerate((1.0, float(x_N.mean()), float((x_N**2).mean()))):
                held[i] += count * value
            held[3:] = [min(held[3], float(x_N.min())), max(held[4], float(x_N.max()))]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {name: list(held) for name, held in self.seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = {name: list(held) for name, held in state["seen"].items()}


def _between(x: Tensor, least: Tensor, largest: Tensor) -> Tensor:
    """0 at the least and 1 at the largest; the middle where both are the same."""
    return torch.where(largest > least, (x - least) / (largest - least), 0.5)
