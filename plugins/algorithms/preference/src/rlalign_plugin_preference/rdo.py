"""Weights by differences in reward (after Wang et al. 2024).

Legend: N responses, G groups, K responses of a group, P pairs.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Options, hookimpl
from rlalign.data.statistics import reward_named

GAIN, DISTANCE = "rdo.gain", "rdo.distance"
"""Columns of `rdo`: what the coefficient of a pair is a difference of; a response's mean distance to its siblings."""


def reward_difference(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """[P]: r_w − r_l, not below 0: the weight of a pair (Wang et al. 2024)."""
    return (chosen_P - rejected_P).clamp_min(0)


def mean_distance(value_GK: Tensor, real_GK: Tensor) -> Tensor:
    """[G,K]: the mean absolute difference of a response's value to those of its siblings; 0 without any."""
    both_GKK = real_GK[:, :, None] & real_GK[:, None, :]
    far_GKK = torch.where(both_GKK, (value_GK[:, :, None] - value_GK[:, None, :]).abs(), 0.0)
    return far_GKK.sum(2) / (real_GK.sum(1, keepdim=True) - 1).clamp_min(1)


def coefficient(batch: Batch, chosen_P: Tensor, rejected_P: Tensor) -> Tensor | None:
    """[P]: the weight that `rdo` gives each pair; None without it."""
    gain_N = batch.columns.get(GAIN)
    return None if gain_N is None else reward_difference(gain_N[chosen_P], gain_N[rejected_P])


class RDO(Component):
    """RDO-style weights (after Wang et al. 2024): a pair counts in proportion to its difference in reward.

    `dpo`, `ipo`, `simpo`, `orpo` and `rrhf` multiply the loss of each pair by the difference, 0 where it is negative;
    `kto` that of each response by its mean absolute difference to its siblings.
    """

    paper = "Shiqi Wang et al., Reward difference optimization for sample reweighting in offline RLHF, 2024"

    class Config(Options):
        """Options of `rdo`."""

        part: str | None = Field(
            None, description="the reward whose differences count, by name; null: the weighted sum of all"
        )

    config: Config
    min_samples = 2

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        gain_N = reward_named(batch, self.config.part, f"`{self.name}` weighs by")
        rows_GK, real_GK = batch.rollout.groups()
        distance_N = torch.zeros_like(gain_N)
        distance_N[rows_GK[real_GK]] = mean_distance(gain_N[rows_GK], real_GK)[real_GK]
        return replace(batch, columns={**batch.columns, GAIN: gain_N, DISTANCE: distance_N})
