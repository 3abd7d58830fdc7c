"""Which responses are compared. Legend: N responses, G groups, K responses of a group.

`_GKK` holds a number for every two responses of a group, at [i, j] that of response i beside its sibling j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlalign import Batch, ComponentError
from rlalign.data.statistics import first_single

Which = Literal["all", "across"]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch: its groups, and for every two responses whether they are compared."""

    rows_GK: Tensor
    real_GK: Tensor
    compared_GKK: Tensor

    @staticmethod
    def of(batch: Batch, which: Which) -> Pairs:
        """All two responses of a group, or those whose sources differ."""
        rows_GK, real_GK = batch.rollout.groups()
        other_KK = ~torch.eye(real_GK.shape[1], dtype=torch.bool, device=real_GK.device)
        compared_GKK = real_GK[:, :, None] & real_GK[:, None, :] & other_KK
        if which == "across":
            source_GK = sources(batch)[rows_GK]
            compared_GKK &= source_GK[:, :, None] != source_GK[:, None, :]
        return Pairs(rows_GK, real_GK, compared_GKK)

    def gaps(self, x_N: Tensor) -> Tensor:
        """[G,K,K]: x of each response less that of each sibling."""
        x_GK = x_N[self.rows_GK]
        return x_GK[:, :, None] - x_GK[:, None, :]

    def mean(self, x_GKK: Tensor, among_GKK: Tensor | None = None) -> Tensor:
        """[N]: each response's mean over those it is compared with, `among` these; 0 where there are none."""
        among_GKK = self.compared_GKK if among_GKK is None else among_GKK
        sum_GK = torch.where(among_GKK, x_GKK, 0.0).sum(2)
        return self.flat(sum_GK / among_GKK.sum(2).clamp_min(1))

    def flat(self, x_GK: Tensor) -> Tensor:
        """[N] of [G,K]."""
        rows_N = self.rows_GK[self.real_GK]
        return x_GK.new_zeros(len(rows_N)).index_put((rows_N,), x_GK[self.real_GK])


def sources(batch: Batch) -> Tensor:
    """[N]: the source of each response, as a number."""
    names = batch.rollout.columns["source"]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], device=batch.rollout.group_N.device)


def refuse_incomparable(name: str, batch: Batch, which: Which) -> None:
    """A response that is alone, sources that nobody named, and log-probs that are not of one policy."""
    rollout = batch.rollout
    if single := first_single(rollout):
        raise ComponentError(
            f"`{name}` compares responses to one prompt, and example `{single.id}` has one response only; it needs two "
            "of every prompt at least"
        )
    if which == "across" and "source" not in rollout.columns:
        raise ComponentError(
            f"`{name}` with `pairs: across` compares responses of different sources, and here there is one; say "
            "`responses: {mix: {logged: 1, sampled: 1}}`, or `pairs: all`"
        )
    temperature_N = rollout.setting("temperature")
    pairs = Pairs.of(batch, "all")
    mixed_GKK = (pairs.gaps(temperature_N) != 0) & pairs.compared_GKK
    if mixed := mixed_GKK.any((1, 2)).nonzero()[:, 0].tolist():
        found = temperature_N[rollout.group_N == mixed[0]].unique().tolist()
        raise ComponentError(
            f"`{name}` compares log-probs under one policy, and those of the responses to example "
            f"`{rollout.examples[mixed[0]].id}` are taken at temperatures {' and '.join(f'{t:g}' for t in found)}; "
            "logged responses have 1, so say `generation: {temperature: 1}`"
        )
