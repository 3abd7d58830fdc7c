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
from rlalign_plugin_hf.decoding import LazyDecoder
from rlalign_plugin_hf.native.attention import Columns, hiding

if TYPE_CHECKING:
    from rlalign_plugin_hf.causal import CausalLM
    from rlalign_plugin_hf.model import LanguageModel
    from rlalign_plugin_hf.native.family import EncoderDecoder, Family
    from rlalign_plugin_hf.seq2seq import Seq2SeqLM

ROOM = 64
"""Columns for responses; where they do not suffice, there are as many again."""


class NativeDecoder(LazyDecoder):
    """What both kinds share: buffers with room for responses, and rows that grow at one column."""

    _columns: Columns
    _column: int

    def __init__(self, policy: LanguageModel, family: Family) -> None:
        self.policy, self.family = policy, family
        self._bias_nL: Tensor | None = None
        refresh(family, policy)

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
            self._columns = self._columns.taken(None, self._column, self._column + ROOM)
            if self._bias_nL is not None:
                self._bias_nL = pad(self._bias_nL, (0, ROOM))
        self._hidden_nC = self._step(token_n)
        self._column += 1

    @abstractmethod
    def _step(self, token_n: Tensor) -> Tensor:
        """The family's step at the present column."""

    def _keep(self, rows: Tensor, room: int = 0) -> None:
        self._columns = self._columns.taken(rows, self._column, self._columns.length + room)
        self._hidden_nC = self._hidden_nC[rows]
        if self._bias_nL is not None:
            self._bias_nL = self._bias_nL[rows]


class NativeCausalDecoder(NativeDecoder):
    """Each distinct prompt is read once, then its keys and values stand before each of its responses."""

    policy: CausalLM

    def __init__(self, policy: CausalLM, family: Family, inputs: Sequence[Tensor], k: int) -> None:
        super().__init__(policy, family)
        prompts, which_G = distinct(inputs)
        ids_nP, real_nP = left_padded(prompts, policy._filler)
        self._column = ids_nP.shape[1]
        self._next_n = real_nP.sum(1)
        padded = any(len(prompt) < self._column for prompt in prompts)
        columns = family.columns(len(prompts), self._column)
        with precisely(ids_nP):
            self._hidden_nC = family.prefill(columns, ids_nP, real_nP if padded else None)
        if padded:
            self._bias_nL = hiding(pad(real_nP, (0, ROOM), value=True), family.dtype)
        self._columns = columns
        self._keep(which_G.repeat_interleave(k), room=ROOM)

    def _step(self, token_n: Tensor) -> Tensor:
        hidden_nC = self.family.step(self._columns, token_n, self._next_n, self._column, self._bias_nL)
        self._next_n = self._next_n + 1
        return hidden_nC

    def _keep(self, rows: Tensor, room: int = 0) -> None:
        super()._keep(rows, room)
        self._next_n = self._next_n[rows]


class NativeSeq2SeqDecoder(NativeDecoder):
    """Each distinct prompt is encoded once, by transformers; keys and values of it are made once."""

    policy: Seq2SeqLM
    family: EncoderDecoder

    def __init__(self, policy: Seq2SeqLM, family: EncoderDecoder, inputs: Sequence[Tensor], k: int) -> None:
        super().__init__(policy, family)
        prompts, which_G = distinct(inputs)
        with policy.acting(training=False):
            states_nSC, mask_nS = policy.encoded(prompts)
        begin = torch.tensor(policy._begin, device=which_G.device)
        self._column = len(begin)
        self._columns = family.columns(len(prompts), self._column)
        with precisely(begin):
            self._cross = family.cross(states_nSC, None if mask_nS is None else mask_nS.bool())
            ids_nP = begin.expand(len(prompts), -1)
            self._hidden_nC = family.prefill(self._columns, ids_nP, cross=self._cross)
        self._keep(which_G.repeat_interleave(k), room=ROOM)

    def _step(self, token_n: Tensor) -> Tensor:
        position_n = torch.full_like(token_n, self._column)
        return self.family.step(self._columns, token_n, position_n, self._column, cross=self._cross)

    def _keep(self, rows: Tensor, room: int = 0) -> None:
        super()._keep(rows, room)
        self._cross = self._cross.taken(rows)


def refresh(family: Family, policy: LanguageModel) -> None:
    """Give a family the policy's present weights, adapters added, in the precision that is asked for now."""
    kind, lora = policy.device.type, policy.config.lora is not None
    half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if half else policy._weight.dtype
    with torch.no_grad(), policy.acting(training=False):
        family.refresh(policy.network, dtype, adapters=lora and not policy._switched_off())


@contextmanager
def precisely(like: Tensor) -> Iterator[None]:
    """The step says itself what is computed in half precision."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield
