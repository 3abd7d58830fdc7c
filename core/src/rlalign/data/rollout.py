"""Responses in groups. Legend: N responses, G groups, T steps, V vocabulary.

Padding is at the end of the T axis; what stands there is never read. `take` selects rows and keeps T,
so that everything row-aligned, whatever its other axes mean, follows by plain indexing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rlalign.data.allowed import Allowed
from rlalign.data.example import Example
from rlalign.data.settings import Sampling


def take_column(column: Any, rows: Tensor) -> Any:
    """The given rows of anything row-aligned."""
    if isinstance(column, Tensor):
        return column[rows.to(column.device)]
    if isinstance(column, Rollout):
        return column.take(rows)
    return _picked(column, rows.tolist())


def fixed(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Columns that nobody can add to or take from, a list among them as a tuple."""
    if type(columns) is MappingProxyType:
        return columns
    return MappingProxyType({k: tuple(v) if type(v) is list else v for k, v in columns.items()})


def concat_columns(parts: Sequence[Any]) -> Any:
    """Join row-aligned pieces; tensors of different T are padded to the longest."""
    if isinstance(parts[0], Rollout):
        return concat(parts)
    if not isinstance(parts[0], Tensor):
        return tuple(value for part in parts for value in part)
    if parts[0].ndim > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [padded(part, longest) for part in parts]
    return torch.cat(list(parts))


def padded(x_NT: Tensor, steps: int) -> Tensor:
    """[N,steps]: with zeros behind."""
    if x_NT.shape[1] == steps:
        return x_NT
    padded = x_NT.new_zeros(len(x_NT), steps, *x_NT.shape[2:])
    padded[:, : x_NT.shape[1]] = x_NT
    return padded


AGE = "age"
"""The column that says how many iterations ago a row was sampled. Rows without it, or with 0 or NaN, are new."""
SAMPLED = "sampled"
"""The column that holds the texts as they were sampled, before the task's `postprocess`."""
VERSION = "version"
"""The column that says with which version of the policy's weights a sampler elsewhere sampled a row."""
TURN = "turn"
"""The column of episodes that says which turn each step belongs to; what is told, to the one that it begins."""
TRANSCRIPT = "transcript"
"""The column of episodes that holds each of the policy's texts, and the `Turn` that came back for it."""
EPISODE = "episode"
"""The column of rows that are single turns, of episodes whose history is rewritten: which episode each belongs to."""
START = "start"
"""Their column that says which start each row's episode began from: those of one start are compared."""
TO_GO = "togo"
"""Their column that holds what the environment paid from each row's turn on, undiscounted."""
SUMS = "sums"
"""Their column of the sums, by name, of the metrics of each row's turn and of those after it."""
SCORE_OF = "score_of."
"""What the columns' names begin with that hold a score which a row was given before: `score_of.NAME`, and
`score_of.NAME/METRIC` for what came with it. NaN where there is none."""


def own(output: str) -> str:
    """The column of what the policy itself said, at that version, of a response that was sampled elsewhere."""
    return f"own_{output}"


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

    def __post_init__(self) -> None:
        for name in ("examples", "inputs", "settings", "texts"):
            if type(getattr(self, name)) is not tuple:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "columns", fixed(self.columns))

    def __len__(self) -> int:
        return len(self.group_N)

    @property
    def steps(self) -> int:
        """T."""
        return self.actions_NT.shape[1]

    @cached_property
    def chosen(self) -> tuple[Tensor, Tensor]:
        """(row_M, step_M) of the M steps the policy chose, row by row."""
        return self.mask_NT.nonzero(as_tuple=True)  # type: ignore[return-value]

    @cached_property
    def length_N(self) -> Tensor:
        """Steps of each response, given ones included."""
        ends_NT = self.mask_NT * torch.arange(1, self.steps + 1, device=self.mask_NT.device)
        return ends_NT.amax(1) if self.steps else ends_NT.sum(1)

    @cached_property
    def cost_N(self) -> Tensor:
        """Tokens of prompt and response."""
        prompts = torch.tensor(list(map(Tensor.numel, self.inputs)), device=self.group_N.device)
        return self.length_N + prompts[self.group_N] if len(prompts) else self.length_N

    @cached_property
    def answered(self) -> tuple[Example, ...]:
        """The example that each row answers."""
        return tuple(self.examples[g] for g in self.group_N.tolist())

    @cached_property
    def new_N(self) -> Tensor:
        """Whether each row was made for this iteration, and not remembered from an earlier one."""
        age_N = self.columns.get(AGE)
        return torch.ones_like(self.finished_N) if age_N is None else ~(age_N > 0)

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
            examples=_picked(self.examples, kept_list),
            inputs=_picked(self.inputs, kept_list),
            group_N=group_N,
            actions_NT=self.actions_NT[rows],
            mask_NT=self.mask_NT[rows],
            finished_N=self.finished_N[rows],
            setting_N=self.setting_N[rows],
            logprobs_NT=self.logprobs_NT[rows],
            full_logprobs_NT=self.full_logprobs_NT[rows],
            texts=_picked(self.texts, row_list),
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

    def to(self, device: torch.device | str) -> Rollout:
        """The same responses on a device."""
        own = ((one.name, getattr(self, one.name)) for one in fields(self))
        moved: dict[str, Any] = {name: x.to(device) for name, x in own if isinstance(x, Tensor)}
        columns = {
            name: x.to(device) if isinstance(x, Tensor | Rollout) else x for name, x in self.columns.items()
        }
        return replace(self, inputs=tuple(x.to(device) for x in self.inputs), columns=columns, **moved)

    def row_order(self) -> Tensor:
        """Rows group by group, a stable order."""
        return self.group_N.argsort(stable=True)


def ends_of_turns(rollout: Rollout, ends: Sequence[int]) -> list[list[bool]]:
    """Of each turn of each episode: whether it ended with an end token."""
    found = []
    for i in range(len(rollout)):
        mine_T = rollout.mask_NT[i]
        turns, tokens = rollout.columns[TURN][i][mine_T].tolist(), rollout.actions_NT[i][mine_T].tolist()
        found.append([token in ends for token in dict(zip(turns, tokens, strict=True)).values()])
    return found


def _picked(some: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    found: tuple[Any, ...] = itemgetter(*places)(some) if len(places) > 1 else tuple(some[i] for i in places)
    return found


def _indices(rows: Tensor, count: int) -> Tensor:
    if rows.dtype == torch.bool:
        if rows.shape != (count,):
            raise ValueError(f"a mask over {count} rows has the shape {tuple(rows.shape)}")
        return rows.nonzero()[:, 0]
    return rows


def concat(parts: Sequence[Rollout], *, same_examples: bool = False, fill: bool = False) -> Rollout:
    """Join rollouts. With `same_examples` they answer the same examples and their groups become one;
    otherwise every part's groups stay its own. With `fill` numbers that only some parts have are NaN in the others."""
    if len(parts) == 1:
        return parts[0]
    if fill:
        parts = _filled(parts)
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


def _filled(parts: Sequence[Rollout]) -> list[Rollout]:
    """Each with NaN for the numbers that only others have, of one a step for its own steps."""
    known = {
        name: (x, x.ndim > 1 and x.shape[1] == part.steps)
        for part in parts
        for name, x in part.columns.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }

    def unknown(part: Rollout, x: Tensor, stepwise: bool) -> Tensor:
        shape = (part.steps, *x.shape[2:]) if stepwise else x.shape[1:]
        return x.new_full((len(part), *shape), float("nan"))

    return [
        part.with_columns(
            **{name: unknown(part, *found) for name, found in known.items() if name not in part.columns}
        )
        for part in parts
    ]


def logged_rollout(
    examples: Sequence[Example],
    inputs: Sequence[Tensor],
    actions: Sequence[tuple[Sequence[int], bool]],
    *,
    like: Tensor,
    chosen: Sequence[Sequence[bool] | None] = (),
) -> Rollout:
    """Logged responses as a policy encoded them, (actions, whether it ended by itself), in the order of the examples.
    Sampled neutrally (temperature 1, no bans), log-probs NaN. `like`: a weight, for the device, and for the dtype,
    float32 at least. `chosen` says of rows of several turns which steps are the policy's own."""
    lengths = [len(tokens) for tokens, _ in actions]
    steps = max(lengths, default=0)
    mask_NT = torch.arange(steps) < torch.tensor(lengths, dtype=torch.long)[:, None]
    actions_NT = torch.zeros(mask_NT.shape, dtype=torch.long)
    actions_NT[mask_NT] = torch.tensor([a for tokens, _ in actions for a in tokens], dtype=torch.long)
    for row, own in enumerate(chosen):
        if own is not None:
            mask_NT[row, : len(own)] = torch.tensor(own, dtype=torch.bool)
    dtype = torch.promote_types(like.dtype, torch.float32)
    unknown_NT = torch.where(mask_NT, torch.nan, 0.0).to(device=like.device, dtype=dtype)
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
