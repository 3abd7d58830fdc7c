"""Wrappers of `advantage` that keep some of the responses: the best, the good enough, the best and the worst."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

from rlalign.data.batch import Batch
from rlalign.data.settings import Options
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl


def grouped(batch: Batch, x_N: Tensor, padding: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x_GK, rows_GK, real_GK): a value of every response by group, `padding` where a group is smaller."""
    rows_GK, real_GK = batch.rollout.groups()
    return torch.where(real_GK, x_N[rows_GK], padding), rows_GK, real_GK


class BestOf(Component):
    """Keep the `n` responses of each group that earned most (RAFT, Dong et al. 2023)."""

    class Config(Options):
        """Options of `best-of`."""

        n: int = Field(1, gt=0, description="responses kept a prompt")

    config: Config

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        total_GK, rows_GK, real_GK = grouped(batch, batch.reward.total_N, -torch.inf)
        best_GK = total_GK.argsort(dim=1, descending=True, stable=True)[:, : self.config.n]
        kept = rows_GK.gather(1, best_GK)[real_GK.gather(1, best_GK)]
        return batch.take(kept.sort().values)


class AtLeast(Component):
    """Keep the responses whose reward reaches a threshold (ReST's Improve step, Gulcehre et al. 2023)."""

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
        value_N = batch.reward.total_N
        if self.config.part is not None:
            if self.config.part not in batch.reward.parts:
                raise ComponentError(
                    f"`{self.name}` compares `{self.config.part}`; the rewards are {', '.join(batch.reward.parts)}"
                )
            part = batch.reward.parts[self.config.part]
            value_N = batch.sum_over_chosen(part) if part.ndim == 2 else part
        kept_N = value_N > self.config.threshold if self.config.strict else value_N >= self.config.threshold
        return batch.take(kept_N)


class BestVsWorst(Component):
    """Keep the best and the worst response of each group; a group whose responses all earned the same goes."""

    min_samples = 2

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        if len(batch) == 0:
            return batch
        high_GK, rows_GK, _ = grouped(batch, batch.reward.total_N, -torch.inf)
        low_GK, _, _ = grouped(batch, batch.reward.total_N, torch.inf)
        best_G, worst_G = high_GK.max(1), low_GK.min(1)
        differ_G = best_G.values > worst_G.values
        pairs_G2 = torch.stack([best_G.indices, worst_G.indices], 1)
        kept = rows_GK.gather(1, pairs_G2)[differ_G].flatten()
        return batch.take(kept.sort().values)
