"""Responses in progress on raw weights: the core's `Decoder`, by a family's prefill and step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlalign_plugin_hf.batches import distinct, left_padded
from rlalign_plugin_hf.lazy import LazyDecoder
from rlalign_plugin_hf.native.attention import Columns, Cross, hiding
from rlalign_plugin_hf.native.long_prompts import SharedStepping
from rlalign_plugin_hf.native.sharing import Sharing

if TYPE_CHECKING:
    from rlalign_plugin_hf.causal import CausalLM
    from rlalign_plugin_hf.model import LanguageModel
    from rlalign_plugin_hf.native.family import EncoderDecoder, Family
    from rlalign_plugin_hf.seq2seq import Seq2SeqLM

ROOM = 64
"""Columns for responses; where they do not suffice, there are as many again."""
SHARED_FROM = 64
"""Columns that a row need not read for itself from which on sharing prompts pays: about even on a CPU at 48."""


class NativeDecoder(LazyDecoder):
    """Each distinct prompt is read once; then what was made of it stands before each of its responses."""

    _columns: Columns
    _column: int
    """Where all rows stand."""

    @torch.no_grad()
    def __init__(self, policy: LanguageModel, family: Family, inputs: Sequence[Tensor], k: int) -> None:
        self.policy, self.family = policy, family
        refresh(family, policy)
        prompts, which_G = distinct(inputs)
        self._read(prompts)
        self._spread(which_G.repeat_interleave(k))

    @torch.inference_mode()
    def logits(self) -> Tensor:
        with precisely(self._hidden_nC):
            if self._pending_n is not None:
                token_n, self._pending_n = self._pending_n, None
                self._take(token_n)
            logits_nV = self.family.logits(self._hidden_nC)
        if self.policy.never is not None:
            logits_nV[:, self.policy.never] = -math.inf
        return logits_nV

    def _take(self, token_n: Tensor) -> None:
        if self._column == self._columns.length:
            self._columns = self._columns.longer(ROOM)
        self._hidden_nC = self._step(token_n)
        self._column += 1

    def _spread(self, rows: Tensor) -> None:
        """Prompts become the rows of responses."""
        self._columns = self._columns.spread(rows, self._column, self._column + ROOM)
        self._hidden_nC = self._hidden_nC[rows]

    @torch.inference_mode()
    def _keep(self, rows: Tensor) -> None:
        self._columns = self._columns.kept(rows, self._column)
        self._hidden_nC = self._hidden_nC[rows]

    @abstractmethod
    def _read(self, prompts: Sequence[Tensor]) -> None:
        """Fill columns with them; the states after them go to `_hidden_nC`."""

    @abstractmethod
    def _step(self, token_n: Tensor) -> Tensor:
        """The family's step at the present column."""


class NativeCausalDecoder(NativeDecoder):
    """Prompts and responses are one row."""

    policy: CausalLM
    _bias_nL: Tensor | None = None
    """What hides padding, if there is any."""

    def _read(self, prompts: Sequence[Tensor]) -> None:
        ids_nP, real_nP = left_padded(prompts, self.policy._filler)
        self._column = ids_nP.shape[1]
        self._next_n = real_nP.sum(1)
        padded = any(len(prompt) < self._column for prompt in prompts)
        self._columns = self.family.columns(len(prompts), self._column)
        with precisely(ids_nP):
            self._hidden_nC = self.family.prefill(self._columns, ids_nP, real_nP if padded else None)
        if padded:
            self._bias_nL = hiding(real_nP, self.family.dtype)

    def _step(self, token_n: Tensor) -> Tensor:
        if self._bias_nL is not None and self._bias_nL.shape[1] < self._columns.length:
            self._bias_nL = pad(self._bias_nL, (0, self._columns.length - self._bias_nL.shape[1]))
        hidden_nC = self.family.step(self._columns, token_n, self._next_n, self._column, self._bias_nL)
        self._next_n = self._next_n + 1
        return hidden_nC

    def _spread(self, rows: Tensor) -> None:
        super()._spread(rows)
        self._follow(rows)

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        self._follow(rows)

    def _follow(self, rows: Tensor) -> None:
        self._next_n = self._next_n[rows]
        if self._bias_nL is not None:
            self._bias_nL = self._bias_nL[rows]


class SharedCausalDecoder(NativeCausalDecoder):
    """Prompts stay as they are, one a row of their own, and buffers hold responses alone."""

    def _spread(self, rows: Tensor) -> None:
        self._prompts, self._sharing = self._columns, Sharing(rows)
        self._columns, self._column = self.family.columns(len(rows), ROOM), 0
        self._hidden_nC, self._next_n = self._hidden_nC[rows], self._next_n[rows]

    def _step(self, token_n: Tensor) -> Tensor:
        attention = SharedStepping(
            self._prompts, self._sharing, self._columns, self.family.scale, self._column, self._bias_nL
        )
        hidden_nC = self.family.hidden(token_n, self._next_n, attention)
        self._next_n = self._next_n + 1
        return hidden_nC

    @torch.inference_mode()
    def _keep(self, rows: Tensor) -> None:
        NativeDecoder._keep(self, rows)
        self._next_n = self._next_n[rows]
        self._sharing, left = self._sharing.kept(rows)
        if left is not None:
            self._prompts = self._prompts.kept(left, self._prompts.length)
            if self._bias_nL is not None:
                self._bias_nL = self._bias_nL[left]


def causal_decoder(policy: CausalLM, family: Family, inputs: Sequence[Tensor], k: int) -> NativeCausalDecoder:
    """Responses to prompts, which are shared where that spares more than it costs."""
    longest = max(map(len, inputs))
    shares = family.relative is None and longest - longest // k >= SHARED_FROM
    return (SharedCausalDecoder if shares else NativeCausalDecoder)(policy, family, inputs, k)


class NativeSeq2SeqDecoder(NativeDecoder):
    """Prompts are encoded by transformers; keys and values of them are made once."""

    policy: Seq2SeqLM
    family: EncoderDecoder

    def _read(self, prompts: Sequence[Tensor]) -> None:
        self._columns, self._cross, self._hidden_nC = encoded(self.policy, self.family, prompts)
        self._column = self._columns.length

    def _step(self, token_n: Tensor) -> Tensor:
        position_n = torch.full_like(token_n, self._column)
        return self.family.step(self._columns, token_n, position_n, self._column, cross=self._cross)

    def _spread(self, rows: Tensor) -> None:
        super()._spread(rows)
        self._cross = self._cross.spread(rows)

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        self._cross = self._cross.kept(rows)


def encoded(
    policy: Seq2SeqLM, family: EncoderDecoder, prompts: Sequence[Tensor]
) -> tuple[Columns, Cross, Tensor]:
    """(keys and values of what responses begin with, those of the prompts, [n,C] the states after both)."""
    with policy.acting(training=False):
        states_nSC, mask_nS = policy.encoded(prompts)
    begin_nP = torch.tensor(policy._begin, device=states_nSC.device).expand(len(prompts), -1)
    columns = family.columns(*begin_nP.shape)
    with precisely(begin_nP):
        cross = family.cross(states_nSC, None if mask_nS is None else mask_nS.bool())
        return columns, cross, family.prefill(columns, begin_nP, cross=cross)


def refresh(family: Family, policy: LanguageModel, *, join: bool = False) -> None:
    """Give a family the policy's present weights, adapters added, in the precision that is asked for now."""
    kind = policy.device.type
    half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if half else policy._weight.dtype
    with torch.no_grad(), policy.acting(training=False):
        state = policy.version, policy.switched_off()
        family.refresh(policy.network, dtype, state=state, join=join)


@contextmanager
def precisely(like: Tensor) -> Iterator[None]:
    """The step says itself what is computed in half precision."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield
