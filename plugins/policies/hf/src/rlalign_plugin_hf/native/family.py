"""What each family of models tells: its weights, and how they make a state of tokens. The rest is here.

Legend: n rows, P columns of prompts, L columns of the buffers, M rows × columns, C width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from rlalign_plugin_hf.native.attention import Attention, Columns, Cross, Reading, Relative, Stepping, hiding
from rlalign_plugin_hf.native.layers import Linear
from rlalign_plugin_hf.native.weights import Weights


class Family(ABC):
    """A network's decode step on its raw weights. Nothing in it waits for a device, or depends on values."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """Of queries times keys."""
    window: int | None = None
    """How far back attention looks; None: however far."""

    device: torch.device

    def __init__(self, config: Any) -> None:
        """Read a network's configuration; raises `Unfit` at what is not computed here."""
        self._weights: Weights | None = None
        self._state: tuple[Hashable] | None = None

    def refresh(self, network: Any, dtype: torch.dtype, state: Hashable = None, join: bool = False) -> None:
        """Take the network's present weights, if they have changed; matrices are multiplied in `dtype`.

        Copies are written where they were, so that addresses stay. `state` is compared too: a fused AdamW leaves no
        trace on the tensors it changes. With `join`, parameters may be moved, so that fewer have to be copied.
        """
        if self._weights is None or self._weights.dtype != dtype:
            self._weights, self._state = Weights(dtype), None
        if join or self._state != (state,) or self._weights.changed():
            self._state = None
            self._weights.begin(join)
            self.device = network.get_input_embeddings().weight.device
            self.bind(network, self._weights)
            self._state = (state,)

    def forget(self) -> None:
        """Keep no weights: those that were read are there no more."""
        self._weights = self._state = None

    def addresses(self) -> tuple[int, ...]:
        """Where the weights stand that a step reads: a graph of one is good as long as they are the same."""
        return () if self._weights is None else self._weights.addresses()

    @abstractmethod
    def bind(self, network: Any, weights: Weights) -> None:
        """Read all of the network's weights; called again whenever they have changed."""

    @abstractmethod
    def hidden(self, token_M: Tensor, position_M: Tensor, attention: Attention) -> Tensor:
        """[M,C]: what the head reads."""

    @abstractmethod
    def logits(self, hidden_nC: Tensor) -> Tensor:
        """[n,V]."""

    relative: Relative | None = None

    def columns(self, rows: int, length: int) -> Columns:
        """Empty buffers."""
        shape = (self.layers, 2, rows, self.kv_heads, length, self.head_dim)
        return Columns(torch.zeros(shape, dtype=self.dtype, device=self.device))

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in, keys and values among them."""
        assert self._weights is not None, "`refresh` comes first"
        return self._weights.dtype

    def prefill(
        self, columns: Columns, ids_nP: Tensor, real_nP: Tensor | None = None, cross: Cross | None = None
    ) -> Tensor:
        """[n,C] after each row's last token. `real_nP` says what is no padding, on either side; None: all.

        Position ids count what is real; keys and values go to columns 0 to P.
        """
        n, P = ids_nP.shape
        if real_nP is None:
            position_nP = torch.arange(P, device=ids_nP.device).expand(n, P)
        else:
            position_nP = (real_nP.cumsum(1) - 1).clamp_min(0)
        attention = Reading(columns, (n, P), self.scale, real_nP, self.relative, cross)
        hidden_nPC = self.hidden(ids_nP.reshape(-1), position_nP.reshape(-1), attention).view(n, P, -1)
        if real_nP is None:
            return hidden_nPC[:, -1]
        last_n = (real_nP * torch.arange(P, device=ids_nP.device)).argmax(1)
        return hidden_nPC[torch.arange(n, device=ids_nP.device), last_n]

    def step(
        self,
        columns: Columns,
        token_n: Tensor,
        position_n: Tensor,
        column: int | Tensor,
        bias_nL: Tensor | None = None,
        cross: Cross | None = None,
    ) -> Tensor:
        """[n,C] after one more token a row, whose keys and values go to `column`.

        An int is the column of all rows: attention reads it and those before, less what `bias_nL` hides (−∞).
        A tensor [n] is each row's own: all L columns are read, and `bias_nL` must hide those after it.
        """
        attention = Stepping(
            columns,
            len(token_n),
            self.heads,
            self.scale,
            column,
            bias_nL,
            self.relative,
            cross,
        )
        return self.hidden(token_n, position_n, attention)


class EncoderDecoder(Family):
    """One whose prompt is read by an encoder, transformers' own, before the decoder's first step."""

    @abstractmethod
    def cross_layers(self) -> list[Linear]:
        """Of each block, what makes keys and values of the encoder's states."""

    def cross(self, states_nSC: Tensor, real_nS: Tensor | None = None) -> Cross:
        """The prompts for `prefill` and `step`; `real_nS` says what is no padding."""
        n, S, C = states_nSC.shape
        both = torch.stack(
            [
                kv(states_nSC.reshape(n * S, C)).view(n, S, 2, self.kv_heads, self.head_dim)
                for kv in self.cross_layers()
            ]
        )
        bias_nS = None if real_nS is None else hiding(real_nS, self.dtype)
        return Cross(Columns(both.permute(0, 3, 1, 4, 2, 5).contiguous()), bias_nS)
