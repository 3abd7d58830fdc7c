"""Wrappers of `advantage` that keep some of the responses: the best, the good enough, those that differ."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field

from rlalign.data.batch import Batch
from rlalign.data.settings import Options
from rlalign.data.statistics import best_and_worst, ranked, reward_named
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl


class BestOf(Component):
    """Keep the `n` responses of each group that earned most (RAFT, Dong et al. 2023)."""

    paper = (
        "Hanze Dong et al., RAFT: reward ranked finetuning for generative foundation model alignment, 2023"
    )

    class Config(Options):
        """Options of `best-of`."""

        n: int = Field(1, gt=0, description="responses kept a prompt")

    config: Config

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        rows_GK, real_GK = ranked(batch.reward.total_N, *batch.rollout.groups())
        kept = rows_GK[:, : self.config.n][real_GK[:, : self.config.n]]
        return batch.take(kept.sort().values)


class AtLeast(Component):
    """Keep the responses whose reward reaches a threshold (ReST's Improve step, Gulcehre et al. 2023)."""

    paper = "Caglar Gulcehre et al., Reinforced self-training (ReST) for language modeling, 2023"

    class Config(Options):
        """Options of `at-least`."""

        threshold: float = Field(description="the least reward that is kept")
        strict: bool = Field(False, description="keep only what is above the threshold, as ReST does")
        part: str | None = Field(
            None, description="the reward compared, by name; null: the weighted sum of all"
        )

    config: Config

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        value_N = reward_named(batch, self.config.part, f"`{self.name}` compares")
        kept_N = value_N > self.config.threshold if self.config.strict else value_N >= self.config.threshold
        return batch.take(kept_N)


class BestVsWorst(Component):
    """Keep the best and the worst response of each group; a group whose responses all earned the same goes."""

    min_samples = 2

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        best_P, worst_P = best_and_worst(batch.reward.total_N, *batch.rollout.groups())
        return batch.take(torch.cat([best_P, worst_P]).sort().values)


class DropTies(Component):
    """Leave out groups whose responses all earned the same: nothing can be learned from comparing them.

    With `train.refill`, other prompts are drawn in their place: the dynamic sampling of DAPO (equation 11).
    """

    paper = "Qiying Yu et al., DAPO: an open-source LLM reinforcement learning system at scale, 2025"

    class Config(Options):
        """Options of `drop-ties`."""

        part: str | None = Field(
            None, description="the reward compared, by name; null: the weighted sum of all"
        )

    config: Config
    min_samples = 2

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        value_N = reward_named(batch, self.config.part, f"`{self.name}` compares")
        rows_GK, real_GK = batch.rollout.groups()
        differ_G = ((value_N[rows_GK] != value_N[rows_GK[:, :1]]) & real_GK).any(1)
        return batch.take(differ_G[batch.rollout.group_N])
