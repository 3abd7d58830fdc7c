"""The types that travel between the stages. Legend: N responses, G groups, T steps, V vocabulary.

Padding is at the end of the T axis; what stands there is never read. `take` selects rows and keeps T,
so that everything row-aligned, whatever its other axes mean, follows by plain indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rlalign.allowed import Allowed
from rlalign.pipeline import Sampling

Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Example:
    """A prompt from a task, with whatever is known about good and bad responses to it."""

    id: str
    prompt: Prompt
    responses: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    finished: tuple[bool, ...] = ()
    """Whether each logged response ended by itself; empty: they all did."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    row: int = -1
    """Set by the draw: where its first logged response stands among all logged responses of the data."""


def take_column(column: Any, rows: Tensor) -> Any:
    """The given rows of anything row-aligned."""
    if isinstance(column, Tensor):
        return column[rows.to(column.device)]
    if isinstance(column, Rollout):
        return column.take(rows)
    return tuple(column[i] for i in rows.tolist())


def concat_columns(parts: Sequence[Any]) -> Any:
    """Join row-aligned pieces; tensors of different T are padded to the longest."""
    if isinstance(parts[0], Rollout):
        return concat(parts)
    if not isinstance(parts[0], Tensor):
        return tuple(value for part in parts for value in part)
    if parts[0].ndim > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [_pad(part, longest) for part in parts]
    return torch.cat(list(parts))


def _pad(x_NT: Tensor, steps: int) -> Tensor:
    if x_NT.shape[1] == steps:
        return x_NT
    padded = x_NT.new_zeros(len(x_NT), steps, *x_NT.shape[2:])
    padded[:, : x_NT.shape[1]] = x_NT
    return padded


def _common(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns that every part carries, joined; a column only some carry has no value for the others."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: concat_columns([part[name] for part in parts]) for name in names}


@dataclass(frozen=True, eq=False)
class Rollout:
    """Responses in groups: row i answers `examples[group_N[i]]`."""

    examples: tuple[Example, ...]
    inputs: tuple[Tensor, ...]
    """One per group: the prompt as the policy reads it. Its meaning is the policy's business."""
    group_N: Tensor
    actions_NT: Tensor
    mask_NT: Tensor
    """True where the policy chose; a step inside the length with False was given."""
    finished_N: Tensor
    """Ended by itself rather than cut."""
    settings: tuple[Sampling, ...]
    setting_N: Tensor
    """How each row was sampled: an index into `settings`."""
    logprobs_NT: Tensor
    """Under the distribution really sampled from: temperature, bans and `allowed`. NaN where unknown."""
    full_logprobs_NT: Tensor
    """At the same temperature, with nothing removed. NaN where unknown."""
    texts: tuple[str, ...]
    allowed: Allowed | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.group_N)

    @property
    def steps(self) -> int:
        """T."""
        return self.actions_NT.shape[1]

    @cached_property
    def chosen(self) -> tuple[Tensor, Tensor]:
        """(row_M, step_M) of the M steps the policy chose, row by row."""
        row_M, step_M = self.mask_NT.nonzero(as_tuple=True)
        return row_M, step_M

    @cached_property
    def length_N(self) -> Tensor:
        """Steps of each response, given ones included."""
        ends_NT = self.mask_NT * torch.arange(1, self.steps + 1, device=self.mask_NT.device)
        return ends_NT.amax(1) if self.steps else ends_NT.sum(1)

    @cached_property
    def cost_N(self) -> Tensor:
        """Tokens of prompt and response."""
        prompts = torch.tensor([x.numel() for x in self.inputs], device=self.group_N.device)
        return self.length_N + prompts[self.group_N] if len(prompts) else self.length_N

    def setting(self, name: str) -> Tensor:
        """One numeric setting of how each row was sampled, [N]."""
        found = [getattr(s, name) for s in self.settings]
        dtype = torch.float64 if isinstance(found[0], float) else None
        return torch.tensor(found, dtype=dtype, device=self.setting_N.device)[self.setting_N]

    def groups(self) -> tuple[Tensor, Tensor]:
        """(rows_GK, real_GK): the rows of each group, padded with row 0 where `real_GK` is False."""
        order = self.group_N.argsort(stable=True)
        counts = torch.bincount(self.group_N, minlength=len(self.examples))
        places_K = torch.arange(int(counts.max()) if len(counts) else 0, device=order.device)
        real_GK = places_K < counts[:, None]
        rows_GK = torch.zeros(real_GK.shape, dtype=torch.long, device=order.device)
        rows_GK[real_GK] = order
        return rows_GK, real_GK

    def take(self, rows: Tensor) -> Rollout:
        """The given rows (indices or a mask), with the groups they belong to, renumbered."""
        rows = _indices(rows, len(self))
        kept, group_N = self.group_N[rows].unique(return_inverse=True)
        kept_list, row_list = kept.tolist(), rows.tolist()
        return replace(
            self,
            examples=tuple(self.examples[g] for g in kept_list),
            inputs=tuple(self.inputs[g] for g in kept_list),
            group_N=group_N,
            actions_NT=self.actions_NT[rows],
            mask_NT=self.mask_NT[rows],
            finished_N=self.finished_N[rows],
            setting_N=self.setting_N[rows],
            logprobs_NT=self.logprobs_NT[rows],
            full_logprobs_NT=self.full_logprobs_NT[rows],
            texts=tuple(self.texts[i] for i in row_list),
            allowed=None if self.allowed is None else self.allowed.take(row_list),
            columns={name: take_column(column, rows) for name, column in self.columns.items()},
        )

    def flaw(self) -> str | None:
        """What does not fit together in it, in words."""
        count, shape = len(self.group_N), tuple(self.mask_NT.shape)
        for name in ("actions_NT", "mask_NT", "logprobs_NT", "full_logprobs_NT"):
            found = tuple(getattr(self, name).shape)
            if found != shape or shape[0] != count:
                return f"{name} is {found} where there are {count} responses of up to {shape[-1]} steps"
        for name in ("finished_N", "setting_N", "texts"):
            if len(getattr(self, name)) != count:
                return f"{name} has {len(getattr(self, name))} entries for {count} responses"
        if len(self.inputs) != len(self.examples):
            return f"inputs are {len(self.inputs)} for {len(self.examples)} examples"
        if count and not 0 <= int(self.group_N.min()) <= int(self.group_N.max()) < len(self.examples):
            return f"group_N names groups that are not among the {len(self.examples)} examples"
        if self.mask_NT.dtype != torch.bool or self.finished_N.dtype != torch.bool:
            return "mask_NT and finished_N must be boolean"
        if count and not bool(self.mask_NT.any(1).all()):
            row = int(self.mask_NT.any(1).logical_not().nonzero()[0, 0])
            name = self.examples[int(self.group_N[row])].id
            return f"response to example `{name}` has no steps; even an empty text has an end"
        return None

    def with_columns(self, **columns: Any) -> Rollout:
        """The same responses with further columns; a name with a dot is given as `**{name: column}`."""
        return replace(self, columns={**self.columns, **columns})

    def row_order(self) -> Tensor:
        """Rows group by group, a stable order."""
        return self.group_N.argsort(stable=True)


def _indices(rows: Tensor, count: int) -> Tensor:
    if rows.dtype == torch.bool:
        if rows.shape != (count,):
            raise ValueError(f"a mask over {count} rows has the shape {tuple(rows.shape)}")
        return rows.nonzero()[:, 0]
    return rows


def concat(parts: Sequence[Rollout], *, same_examples: bool = False) -> Rollout:
    """Join rollouts. With `same_examples` they answer the same examples and their groups become one;
    otherwise every part's groups stay its own."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    settings = tuple(dict.fromkeys(s for part in parts for s in part.settings))
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + (0 if same_examples else len(part.examples)))
    setting = [
        torch.tensor([settings.index(s) for s in p.settings], device=p.setting_N.device)[p.setting_N]
        for p in parts
    ]
    joined = Rollout(
        examples=first.examples if same_examples else tuple(e for p in parts for e in p.examples),
        inputs=first.inputs if same_examples else tuple(x for p in parts for x in p.inputs),
        group_N=torch.cat([p.group_N + o for p, o in zip(parts, offsets, strict=False)]),
        actions_NT=concat_columns([p.actions_NT for p in parts]),
        mask_NT=concat_columns([p.mask_NT for p in parts]),
        finished_N=torch.cat([p.finished_N for p in parts]),
        settings=settings,
        setting_N=torch.cat(setting),
        logprobs_NT=concat_columns([p.logprobs_NT for p in parts]),
        full_logprobs_NT=concat_columns([p.full_logprobs_NT for p in parts]),
        texts=tuple(t for p in parts for t in p.texts),
        allowed=Allowed.concat([(p.allowed, len(p)) for p in parts]),
        columns=_common([p.columns for p in parts]),
    )
    return joined.take(joined.row_order()) if same_examples else joined


def logged_rollout(
    examples: Sequence[Example],
    inputs: Sequence[Tensor],
    actions: Sequence[tuple[Sequence[int], bool]],
    *,
    like: Tensor,
) -> Rollout:
    """Logged responses as a policy encoded them: (actions, whether it ended by itself), in the order of the
    examples and their responses. Sampled neutrally (temperature 1, no bans), log-probs NaN. `like` is a
    weight, for dtype and device."""
    steps = max((len(tokens) for tokens, _ in actions), default=0)
    actions_NT = torch.zeros(len(actions), steps, dtype=torch.long)
    for i, (tokens, _) in enumerate(actions):
        actions_NT[i, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    length_N = torch.tensor([len(tokens) for tokens, _ in actions], dtype=torch.long)
    mask_NT = torch.arange(steps) < length_N[:, None]
    unknown_NT = torch.where(mask_NT, torch.nan, 0.0).to(device=like.device, dtype=like.dtype)
    groups = [g for g, example in enumerate(examples) for _ in example.responses]
    return Rollout(
        examples=tuple(examples),
        inputs=tuple(inputs),
        group_N=torch.tensor(groups, dtype=torch.long, device=like.device),
        actions_NT=actions_NT.to(like.device),
        mask_NT=mask_NT.to(like.device),
        finished_N=torch.tensor([ended for _, ended in actions], dtype=torch.bool, device=like.device),
        settings=(Sampling(),),
        setting_N=torch.zeros(len(actions), dtype=torch.long, device=like.device),
        logprobs_NT=unknown_NT,
        full_logprobs_NT=unknown_NT.clone(),
        texts=tuple(text for example in examples for text in example.responses),
    )


@dataclass(frozen=True, eq=False)
class Score:
    """What one reward says of a rollout: [N], paid on the last chosen step, or [N,T]."""

    value: Tensor
    name: str | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Row-aligned values ([N], or [N,T] over chosen steps) whose means are logged as `<name>/<metric>`."""


@dataclass(frozen=True, eq=False)
class Reward:
    """The weighted sum of all scores at every step, and each raw score by name."""

    tokens_NT: Tensor
    parts: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def total_N(self) -> Tensor:
        """A response's total reward."""
        return self.tokens_NT.sum(1)

    def take(self, rows: Tensor) -> Reward:
        return Reward(
            self.tokens_NT[rows],
            {name: part[rows] for name, part in self.parts.items()},
            {name: metric[rows] for name, metric in self.metrics.items()},
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

    @staticmethod
    def of(rollout: Rollout, reward: Reward, advantage: Tensor, **columns: Any) -> Batch:
        """From `advantage` [N] (the same at every chosen step) or [N,T]."""
        mask_NT = rollout.mask_NT
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


def concat_batches(parts: Sequence[Batch]) -> Batch:
    """Join the batches of several draws into one step's worth of data."""
    if len(parts) == 1:
        return parts[0]
    rewards = [part.reward for part in parts]
    olds = [part.old for part in parts if part.old is not None]
    return Batch(
        rollout=concat([part.rollout for part in parts]),
        reward=Reward(
            concat_columns([r.tokens_NT for r in rewards]),
            _common([r.parts for r in rewards]),
            _common([r.metrics for r in rewards]),
        ),
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
