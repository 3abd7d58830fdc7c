"""Scores, rewards, batches and losses. Legend: N responses, G groups, T steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rlalign.data.rollout import Rollout, _common, _indices, concat, concat_columns, fixed, take_column

ADVANTAGE = "advantage"
"""The column of logged responses that holds the advantage of each, where a component computed it over the data."""


@dataclass(frozen=True, eq=False)
class Score:
    """What one reward says of a rollout: [N], paid on the last chosen step, or [N,T]."""

    value: Tensor
    name: str | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Row-aligned values ([N], or [N,T] over chosen steps) whose means are logged as `<name>/<metric>`; NaN where a
    row has none."""


@dataclass(frozen=True, eq=False)
class Reward:
    """The weighted sum of all scores at every step, and each raw score by name."""

    tokens_NT: Tensor
    parts: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)
    """What depends on the responses alone: each score as its component gave it, before any wrapper, and its
    metrics as `NAME/METRIC`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", fixed(self.parts))
        object.__setattr__(self, "metrics", fixed(self.metrics))
        object.__setattr__(self, "given", fixed(self.given))

    @cached_property
    def total_N(self) -> Tensor:
        """A response's total reward."""
        return self.tokens_NT.sum(1)

    def take(self, rows: Tensor) -> Reward:
        return Reward(
            self.tokens_NT[rows],
            {name: part[rows] for name, part in self.parts.items()},
            {name: metric[rows] for name, metric in self.metrics.items()},
            {name: given[rows] for name, given in self.given.items()},
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """What one loss is a function of: a piece of an optimiser step, or the whole of it."""

    rollout: Rollout
    reward: Reward
    advantage_NT: Tensor
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What `advantage` made for the loss, by name (returns, weights, pairs), row-aligned."""
    old: Tensor | None = None
    whole: Batch | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", fixed(self.columns))

    @staticmethod
    def of(rollout: Rollout, reward: Reward, advantage: Tensor, **columns: Any) -> Batch:
        """From `advantage` [N] (the same at every chosen step) or [N,T]."""
        mask_NT = rollout.mask_NT
        N, T = mask_NT.shape
        if (got := list(advantage.shape)) not in ([N], [N, 1], [N, T]):
            raise ValueError(
                f"an advantage has the shape [{N}], or [{N}, {T}] with one for each token; got {got}"
            )
        spread_NT = advantage[:, None] if advantage.ndim == 1 else advantage
        advantage_NT = torch.where(mask_NT, spread_NT, spread_NT.new_zeros(()))
        return Batch(rollout, reward, advantage_NT, columns)

    def __len__(self) -> int:
        return len(self.rollout)

    @property
    def step(self) -> Batch:
        """The whole optimiser step this piece belongs to (data only)."""
        return self.whole if self.whole is not None else self

    @property
    def old_logprobs_NT(self) -> Tensor:
        """Log-probs when the iteration began. Set by the core for those who need `old_logprobs`."""
        if self.old is None:
            raise AttributeError(
                "batch.old_logprobs_NT is only there for a component that needs `old_logprobs`"
            )
        return self.old

    def take(self, rows: Tensor) -> Batch:
        """A piece of this step."""
        rows = _indices(rows, len(self))
        return Batch(
            rollout=self.rollout.take(rows),
            reward=self.reward.take(rows),
            advantage_NT=self.advantage_NT[rows],
            columns={name: take_column(column, rows) for name, column in self.columns.items()},
            old=None if self.old is None else self.old[rows],
            whole=self.step,
        )

    def as_step(self) -> Batch:
        """The same rows as an optimiser step of their own."""
        return replace(self, whole=None)

    def sum_over_chosen(self, x_NT: Tensor) -> Tensor:
        """[N]: each response's sum over the steps the policy chose."""
        return torch.where(self.rollout.mask_NT, x_NT, x_NT.new_zeros(())).sum(1)

    def mean_over_tokens(self, x_NT: Tensor, where: Where | None = None) -> Tensor:
        """This piece's share of the step's mean over chosen steps (those `where`, if given)."""
        return self._mean(x_NT, _Chosen(where) if where else _chosen)

    def mean_over_responses(self, x_N: Tensor, where: Where | None = None) -> Tensor:
        """This piece's share of the step's mean over responses (those `where`, if given)."""
        return self._mean(x_N, where or _responses)

    def mean_over_groups(self, x_G: Tensor, where: Where | None = None) -> Tensor:
        """This piece's share of the step's mean over groups, `x_G` in the order of `rollout.groups()`."""
        return self._mean(x_G, where or _groups)

    def _mean(self, x: Tensor, where: Where) -> Tensor:
        here = where(self)
        if here.shape != x.shape:
            raise ValueError(f"a mean over {tuple(here.shape)} entries was given {tuple(x.shape)} values")
        total = torch.where(here, x, x.new_zeros(())).sum()
        return total / self.step.count(where).clamp_min(1)

    def count(self, where: Where) -> Tensor:
        """How many entries `where` selects in this batch. The one denominator of every mean."""
        counted: dict[Where, Tensor] = self.__dict__.setdefault("_counted", {})
        if where not in counted:
            counted[where] = where(self).sum()
        return counted[where]


Where = Callable[[Batch], Tensor]
"""Picks entries of a batch: [N,T], [N] or [G] bool, from data alone."""


def _responses(batch: Batch) -> Tensor:
    return torch.ones_like(batch.rollout.group_N, dtype=torch.bool)


def _groups(batch: Batch) -> Tensor:
    return torch.ones(len(batch.rollout.examples), dtype=torch.bool, device=batch.rollout.group_N.device)


def _chosen(batch: Batch) -> Tensor:
    return batch.rollout.mask_NT


@dataclass(frozen=True)
class _Chosen:
    """The chosen steps that `where` picks. Equal where `where` is, so that each is counted once."""

    where: Where

    def __call__(self, batch: Batch) -> Tensor:
        picked = self.where(batch)
        return batch.rollout.mask_NT & (picked[:, None] if picked.ndim == 1 else picked)


def concat_rewards(parts: Sequence[Reward]) -> Reward:
    """Join the rewards of several draws."""
    if len(parts) == 1:
        return parts[0]
    return Reward(
        concat_columns([part.tokens_NT for part in parts]),
        _common([part.parts for part in parts]),
        _common([part.metrics for part in parts]),
        _common([part.given for part in parts]),
    )


def concat_batches(parts: Sequence[Batch]) -> Batch:
    """Join the batches of several draws into one step's worth of data."""
    if len(parts) == 1:
        return parts[0]
    olds = [part.old for part in parts if part.old is not None]
    return Batch(
        rollout=concat([part.rollout for part in parts]),
        reward=concat_rewards([part.reward for part in parts]),
        advantage_NT=concat_columns([part.advantage_NT for part in parts]),
        columns=_common([part.columns for part in parts]),
        old=concat_columns(olds) if len(olds) == len(parts) else None,
    )


def field_of(output: str) -> str:
    """The field of `Outputs` that holds an output: its name and its shape."""
    return "state_values_NT1" if output == "state_values" else f"{output}_NT"


class Outputs:
    """What a model says of the chosen steps: leaf tensors, and only those that were asked for."""

    logprobs_NT: Tensor
    full_logprobs_NT: Tensor
    entropy_NT: Tensor
    values_NT: Tensor
    state_values_NT1: Tensor
    """[N,T+1]: the values, and at a response's length that of the state after it, 0 where it finished."""

    def __init__(self, **tensors: Tensor) -> None:
        self.__dict__.update(tensors)

    def __getattr__(self, name: str) -> Tensor:
        need = name.rpartition("_")[0] or name
        raise AttributeError(
            f"now.{name} is only there for a component that declares `{need}` in its `needs`"
        )

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def items(self) -> Mapping[str, Tensor]:
        """The tensors by field name."""
        return dict(self.__dict__)

    def only(self, needs: Collection[str]) -> Outputs:
        """What these needs name."""
        return Outputs(**{name: x for name, x in self.__dict__.items() if name.rpartition("_")[0] in needs})

    def take(self, rows: Tensor) -> Outputs:
        return Outputs(**{name: x[rows] for name, x in self.__dict__.items()})


@dataclass(frozen=True, eq=False)
class Loss:
    """A differentiable scalar of `now`, and metrics made by the same means, so that pieces add."""

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
