"""Wrappers of `reward`: each changes the scores of the items above it."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator

from rlalign.data.batch import Reward, Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.data.statistics import per_response
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

    def _shut(self, score: Score, open_N: torch.Tensor) -> torch.Tensor:
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
    """Scores over the standard deviation, and less the mean, of all finished iterations.

    Only finished iterations count, so that a response's score does not depend on how a batch was cut.
    In the first iteration scores pass unchanged. Scores paid at every step stay as they are.
    """

    class Config(Options):
        """Options of `normalise`."""

        shift: bool = Field(True, description="subtract the mean, not only divide by the standard deviation")
        eps: float = Field(1e-8, gt=0, description="added to the variance")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.seen: dict[str, list[float]] = {}
        """By score: how many responses, the sum of their scores, the sum of the squares."""

    @hookimpl(wrapper=True)
    def reward(self) -> Scores:
        scores = yield
        return [self._scaled(s) if s.value.ndim == 1 else s for s in scores]

    def _scaled(self, score: Score) -> Score:
        raw = score.value
        metrics = {**score.metrics, f"{self.name}/raw": raw}
        if score.name not in self.seen:
            return replace(score, metrics=metrics)
        count, total, squares = self.seen[score.name]
        mean = total / count
        scale = math.sqrt(max(0.0, squares / count - mean**2) + self.config.eps)
        return replace(score, value=(raw - (mean if self.config.shift else 0.0)) / scale, metrics=metrics)

    @hookimpl
    def iteration_done(self, reward: Reward) -> None:
        mine = f"/{self.name}/raw"
        for key, raw_N in reward.metrics.items():
            if not key.endswith(mine):
                continue
            held = self.seen.setdefault(key.removesuffix(mine), [0.0, 0.0, 0.0])
            x_N, count = raw_N.double(), float(len(raw_N))
            for i, value in enumerate((1.0, float(x_N.mean()), float((x_N**2).mean()))):
                held[i] += count * value

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {name: list(held) for name, held in self.seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = {name: list(held) for name, held in state["seen"].items()}
