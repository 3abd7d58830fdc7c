"""Slots: rows in progress in buffers that never move, and the step that takes each one token further.

Whatever a step reads and writes stands at a fixed address, and nothing in it looks at a number: it can be captured
in a graph and replayed. A row stands at the left of its slot, so that its columns are its positions and nothing is
padded; each slot has a column of its own, and a bias hides what lies behind it.

A row begins as its prompt without the last token's logits: the first step takes that token once more. So all tokens
of all rows come from the same step. A row that has ended goes on without a trace: its step is one that nobody reads.

Legend: B slots, n of them in use (the first ones), L columns, S tokens of an encoder's prompt, T steps, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlalign import Sampling
from rlalign.data.allowed import pack
from rlalign.decoding.choosing import choose, only
from rlalign.decoding.logits import full_precision
from rlalign.decoding.truncation import truncate
from rlalign_plugin_hf.native.attention import Columns, Cross, hiding
from rlalign_plugin_hf.native.family import Family


@dataclass(frozen=True)
class Shape:
    """The sizes of the buffers."""

    slots: int
    columns: int
    steps: int
    prompt: int = 0
    """Tokens that an encoder reads, at most."""


@dataclass(frozen=True)
class Rules:
    """What is chosen from."""

    how: Sampling
    ends: tuple[int, ...]
    never: int | None = None
    beside: Any = None
    """A constraint by the logits of a second model, or None: see `Beside`."""

    @property
    def narrows(self) -> bool:
        """Whether it must be written down what could be chosen from."""
        return self.how.narrows or self.beside is not None


class Model:
    """One model's step over all slots."""

    def __init__(self, family: Family, shape: Shape, never: int | None) -> None:
        self.family, self.never = family, never
        self.columns = family.columns(shape.slots, shape.columns)
        self.cross: Cross | None = None
        if shape.prompt:
            size = (family.layers, 2, shape.slots, family.kv_heads, shape.prompt, family.head_dim)
            bias_BS = torch.zeros(shape.slots, shape.prompt, dtype=family.dtype, device=family.device)
            self.cross = Cross(Columns(self.columns.both.new_zeros(size)), bias_BS)

    def logits(self, token_n: Tensor, column_n: Tensor) -> Tensor:
        """[n,V] after these tokens, whose keys and values go to these columns."""
        n, columns, cross = len(token_n), self.columns, self.cross
        places_L = torch.arange(columns.length, device=token_n.device)
        back_nL = column_n[:, None] - places_L
        seen_nL = back_nL >= 0
        if self.family.window is not None:
            seen_nL &= back_nL < self.family.window
        bias_nL = hiding(seen_nL, self.family.dtype)
        if cross is not None and cross.bias_nS is not None:
            cross = Cross(Columns(cross.columns.both[:, :, :n]), cross.bias_nS[:n])
        first = Columns(columns.both[:, :, :n])
        hidden_nC = self.family.step(first, token_n, column_n, column_n, bias_nL, cross)
        logits_nV = self.family.logits(hidden_nC)
        if self.never is not None:
            logits_nV[:, self.never] = -math.inf
        return full_precision(logits_nV)

    def place(self, slots: Tensor, columns: Columns, cross: Cross | None, rows: Tensor) -> None:
        """Put prompts that were read into slots."""
        width = min(columns.length, self.columns.length)
        self.columns.both[:, :, slots, :, :width] = columns.both[..., :width, :].index_select(2, rows)
        if cross is None or self.cross is None or self.cross.bias_nS is None:
            return
        size = cross.columns.length
        self.cross.bias_nS[slots] = -math.inf
        self.cross.bias_nS[slots, :size] = 0.0 if cross.bias_nS is None else cross.bias_nS[rows]
        self.cross.columns.both[:, :, slots, :, :size] = cross.columns.both.index_select(2, rows)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Let the rows of these slots go on in others."""
        for buffer in (self.columns.both, *(() if self.cross is None else (self.cross.columns.both,))):
            buffer[:, :, target] = buffer[:, :, source]
        if self.cross is not None and self.cross.bias_nS is not None:
            self.cross.bias_nS[target] = self.cross.bias_nS[source]


class Slots:
    """The state of all rows in progress."""

    def __init__(
        self, models: Sequence[Model], rules: Rules, shape: Shape, vocabulary: int, looks: int
    ) -> None:
        """`looks`: steps between two looks from outside."""
        self.models, self.rules, self.shape, self.vocabulary = list(models), rules, shape, vocabulary
        family = models[0].family
        device = family.device
        exact = torch.promote_types(family.dtype, torch.float32)
        B, T = shape.slots, shape.steps
        self.token_B = torch.zeros(B, dtype=torch.long, device=device)
        self.column_B = torch.zeros_like(self.token_B)
        self.time_B = torch.full_like(self.token_B, T)
        """The step that comes next; T where nothing is left to do, and there it writes what nobody reads."""
        self.length_B = torch.zeros_like(self.token_B)
        self.finished_B = torch.zeros(B, dtype=torch.bool, device=device)
        self.uniform_BT = torch.full((B, T + 1), 0.5, dtype=torch.float64, device=device)
        self.action_BT = torch.zeros(B, T + 1, dtype=torch.long, device=device)
        self.logprob_BT = torch.zeros(B, T + 1, dtype=exact, device=device)
        self.full_logprob_BT = torch.zeros_like(self.logprob_BT)
        self.bad_ = torch.zeros(1, dtype=torch.bool, device=device)
        """Whether a second model's logits were none."""
        self.ends = torch.tensor(rules.ends, dtype=torch.long, device=device)
        self.tick_ = torch.zeros(1, dtype=torch.long, device=device)
        """Steps since the last look."""
        kept = -(-vocabulary // 8) if rules.narrows else 0
        self.kept_tBb = torch.zeros(looks if kept else 0, B, kept, dtype=torch.uint8, device=device)
        """What could be chosen from at each of these steps, packed, and the time of each slot then."""
        self.kept_time_tB = torch.full((looks, B), T, dtype=torch.long, device=device)
        self.per_slot = (
            self.token_B, self.column_B, self.time_B, self.length_B, self.finished_B, self.uniform_BT,
            self.action_BT, self.logprob_BT, self.full_logprob_BT,
        )  # fmt: skip

    def step(self, n: int) -> None:
        """One token more in each of the first n slots. Nothing here waits for a device."""
        T, how = self.shape.steps, self.rules.how
        token_n, column_n, time_n = self.token_B[:n], self.column_B[:n], self.time_B[:n]
        logits_nV = self.models[0].logits(token_n, column_n)
        scaled_nV = logits_nV if how.greedy or how.temperature == 1 else logits_nV / how.temperature
        kept_nV = self._kept(scaled_nV, token_n, column_n, time_n)
        uniform_n = self.uniform_BT[:n].gather(1, time_n[:, None])[:, 0]
        chosen = choose(scaled_nV, None if how.greedy else uniform_n, kept_nV)
        for buffer, found_n in (
            (self.action_BT, chosen.token_n),
            (self.logprob_BT, chosen.logprob_n),
            (self.full_logprob_BT, chosen.full_logprob_n),
        ):
            buffer[:n].scatter_(1, time_n[:, None], found_n[:, None].to(buffer.dtype))
        if kept_nV is not None and self.rules.narrows:
            self.kept_tBb[:, :n].index_copy_(0, self.tick_, pack(kept_nV)[None])
            self.kept_time_tB[:, :n].index_copy_(0, self.tick_, time_n[None])
        self.tick_ += 1
        going_n = time_n < T
        ended_n = going_n & (chosen.token_n[:, None] == self.ends).any(1)
        over_n = ended_n | (time_n + 1 >= T)
        self.finished_B[:n] |= ended_n
        self.length_B[:n] += going_n
        token_n.copy_(torch.where(going_n & ~over_n, chosen.token_n, token_n))
        column_n += going_n & ~over_n
        time_n.add_(1).masked_fill_(over_n, T)

    def _kept(self, scaled_nV: Tensor, token_n: Tensor, column_n: Tensor, time_n: Tensor) -> Tensor | None:
        """[n,V] bool: what may be chosen, or None for everything. As the sampling loop of the core has it."""
        how, beside = self.rules.how, self.rules.beside
        kept_nV = None
        if beside is not None:
            others_nV = self.models[1].logits(token_n, column_n)
            going_n = time_n < self.shape.steps
            self.bad_ |= (going_n & ~others_nV.amax(1).isfinite()).any()
            kept_nV = beside.keeps(others_nV)
        if how.min_new_tokens and len(self.ends):
            early_n1 = (time_n < how.min_new_tokens)[:, None]
            if kept_nV is None:
                kept_nV = torch.ones_like(scaled_nV, dtype=torch.bool)
            banned_V = torch.zeros_like(kept_nV[0]).index_fill_(0, self.ends, True)
            left_nV = kept_nV & ~(early_n1 & banned_V)
            if beside is not None:
                instead_nV = beside.instead_of(others_nV, banned_V)
                left_nV = torch.where(left_nV.any(1, keepdim=True), left_nV, instead_nV)
            kept_nV = left_nV
        if how.narrows:
            kept_nV = truncate(scaled_nV if kept_nV is None else only(scaled_nV, kept_nV), how)
        return kept_nV

    # -- from outside, between steps ----------------------------------------------------------------------

    def begin(self, slots: Tensor, token: Tensor, column: Tensor, uniform: Tensor) -> None:
        """Rows that begin in these slots, after a last token of their prompts at this column."""
        self.token_B[slots], self.column_B[slots] = token, column
        self.time_B[slots] = 0
        self.length_B[slots] = 0
        self.finished_B[slots] = False
        self.uniform_BT[slots, : uniform.shape[1]] = uniform.double()

    def stop(self, slots: Tensor) -> None:
        """Let nothing more happen in these slots."""
        self.time_B[slots] = self.shape.steps

    def move(self, source: Tensor, target: Tensor) -> None:
        """Let the rows of these slots go on in others."""
        for buffer in self.per_slot:
            buffer[target] = buffer[source]
        for model in self.models:
            model.move(source, target)
        self.stop(source)

    @property
    def nbytes(self) -> int:
        """What keys and values take."""
        return sum(model.columns.both.nbytes for model in self.models)
