"""Attention over key–value buffers of a fixed size: while prompts are read, and at one new token a row.

On a CPU, two batched matrix products beat the fused kernel at one query a row, eightfold in bfloat16. Query
heads that share keys stand side by side as the rows of one product, so that keys are never repeated.

Legend: n rows, P columns of prompts, L columns of the buffers, H query heads, K key heads, J = H + 2K heads of queries,
keys and values side by side, D width of a head, M rows × columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rlalign_plugin_hf.native.sharing import Sharing, over_prompts

Relative = Callable[[Tensor], Tensor]
"""How far back keys are -> [...,H], what is added to their scores."""


class Columns:
    """The keys and values of all layers; what a step writes is one column."""

    def __init__(self, both: Tensor) -> None:
        self.both = both
        """[layers, 2, n, K, L, D]."""
        self.layers = _of_layers(both)
        """Of each, keys and values [n,K,L,D]."""
        layers, two, n, K, L, D = both.shape
        self._flat = both.view(layers, two, n * K, L, D)
        self.flat = _of_layers(self._flat)
        """The same buffers, [n·K,L,D]."""

    @property
    def length(self) -> int:
        """L."""
        return self.both.shape[4]

    def column(self, place: int) -> Sequence[Tensor]:
        """One column of each layer, [2,n,K,D]."""
        return self.both.select(4, place).unbind(0)

    def first(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first columns of each layer's keys and values, [n·K,count,D]."""
        return _of_layers(self._flat.narrow(3, 0, count))

    def spread(self, rows: Tensor, used: int, length: int) -> Columns:
        """These rows, any of them several times, in buffers of this length, with their first `used` columns."""
        layers, two, _, heads, _, width = self.both.shape
        made = self.both.new_zeros(layers, two, len(rows), heads, length, width)
        made[..., :used, :] = self.both[..., :used, :].index_select(2, rows)
        return Columns(made)

    def kept(self, rows: Tensor, used: int) -> Columns:
        """These rows, each once at most, with their first `used` columns; they move within the same buffers."""
        for layer in self.both:
            layer[:, : len(rows), :, :used] = layer[..., :used, :].index_select(1, rows)
        return Columns(self.both[:, :, : len(rows)])

    def longer(self, more: int) -> Columns:
        """With so many columns more."""
        return Columns(F.pad(self.both, (0, 0, 0, more)))


def _of_layers(both: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer; all views in one call, as a small model's step has few better things to do."""
    parts = both.view(-1, *both.shape[2:]).unbind(0)
    return list(zip(parts[::2], parts[1::2], strict=True))


class Cross(NamedTuple):
    """The prompt of an encoder–decoder, as its decoder reads it."""

    columns: Columns
    bias_nS: Tensor | None
    """−∞ at padding; None where nothing is padded."""
    sharing: Sharing | None = None
    """Which row reads which prompt; None: each its own."""

    def spread(self, rows: Tensor) -> Cross:
        """For these rows, any prompt several times."""
        return self._replace(sharing=Sharing(rows))

    def kept(self, rows: Tensor) -> Cross:
        """For these rows, each once at most."""
        if self.sharing is None:
            return self._of(rows, None)
        sharing, left = self.sharing.kept(rows)
        return self._replace(sharing=sharing) if left is None else self._of(left, sharing)

    def _of(self, rows: Tensor, sharing: Sharing | None) -> Cross:
        bias_nS = None if self.bias_nS is None else self.bias_nS[rows]
        return Cross(self.columns.kept(rows, self.columns.length), bias_nS, sharing)


class Attention(Protocol):
    """What a family's layers call; their states are rows [M,…] of whatever stands side by side."""

    def __call__(self, layer: int, qkv_MJD: Tensor) -> Tensor:
        """Write keys and values; returns [M,H·D]."""

    def cross(self, layer: int, q_MHD: Tensor) -> Tensor:
        """[M,H·D] over the prompt of an encoder–decoder."""


class Reading:
    """Prompts side by side, padded on either side: columns 0 to P."""

    def __init__(
        self,
        columns: Columns,
        shape: tuple[int, int],
        scale: float,
        real_nP: Tensor | None = None,
        relative: Relative | None = None,
        cross: Cross | None = None,
    ) -> None:
        self._columns, self._shape, self._scale, self._cross = columns, shape, scale, cross
        self._mask = None if real_nP is None else _readable(real_nP)
        if relative is not None:
            self._mask = _with_distance(relative, columns.both.device, shape[1], self._mask)

    def __call__(self, layer: int, qkv_MJD: Tensor) -> Tensor:
        n, P = self._shape
        both = self._columns.both[layer, ..., :P, :]
        q_MHD, kv_M2KD = parted(qkv_MJD, both.shape[2])
        both.copy_(kv_M2KD.view(n, P, *kv_M2KD.shape[1:]).permute(2, 0, 3, 1, 4))
        return self._attend(q_MHD, both[0], both[1], self._mask, causal=self._mask is None)

    def cross(self, layer: int, q_MHD: Tensor) -> Tensor:
        assert self._cross is not None
        bias = self._cross.bias_nS
        keys, values = self._cross.columns.layers[layer]
        mask = None if bias is None else bias[:, None, None].to(keys.dtype)
        return self._attend(q_MHD, keys, values, mask, causal=False)

    def _attend(
        self, q_MHD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        n, P = self._shape
        q_nHPD = q_MHD.to(keys.dtype).view(n, P, *q_MHD.shape[1:]).transpose(1, 2)
        grouped = keys.shape[1] != q_nHPD.shape[1]
        if mask is not None and mask.is_floating_point():
            mask = mask.to(keys.dtype)
        found_nHPD = F.scaled_dot_product_attention(
            q_nHPD, keys, values, attn_mask=mask, is_causal=causal, scale=self._scale, enable_gqa=grouped
        )
        return found_nHPD.transpose(1, 2).reshape(n * P, -1)


class Stepping:
    """One new token a row. `column` is where all rows stand, or a tensor [n] of where each one does.

    With a tensor nothing depends on its values: attention runs over all L columns, and the bias hides the rest.
    """

    def __init__(
        self,
        columns: Columns,
        rows: int,
        heads: int,
        scale: float,
        column: int | Tensor,
        bias_nL: Tensor | None = None,
        relative: Relative | None = None,
        cross: Cross | None = None,
    ) -> None:
        self._columns, self._scale, self._column, self._cross = columns, scale, column, cross
        self._kv_heads = K = columns.both.shape[3]
        self._shape = rows * K, heads // K, columns.both.shape[5]
        if isinstance(column, int):
            self._used, self._rows, self._written = column + 1, None, columns.column(column)
        else:
            self._used, self._rows = columns.length, torch.arange(rows, device=column.device)
        self._read = columns.first(self._used)
        bias = None if bias_nL is None else bias_nL[:, None, : self._used].expand(rows, heads, self._used)
        if relative is not None:
            places = torch.arange(self._used, device=columns.both.device)
            back = column - places if isinstance(column, int) else (column[:, None] - places).clamp_min(0)
            near = relative(back).transpose(-1, -2)
            bias = near.expand(rows, heads, self._used) if bias is None else bias + near
        self._bias = None if bias is None else bias.reshape(*self._shape[:2], self._used)
        self._nothing = columns.both.new_empty(1)
        self._cross_bias = None
        if cross is not None and cross.bias_nS is not None:
            S = cross.bias_nS.shape[1]
            if cross.sharing is None:
                self._cross_bias = cross.bias_nS[:, None].expand(rows, heads, S).reshape(*self._shape[:2], S)
            else:
                self._cross_bias = cross.bias_nS[:, None].expand(-1, K, S).reshape(-1, 1, S)

    def __call__(self, layer: int, qkv_MJD: Tensor) -> Tensor:
        q_MHD, kv_M2KD = parted(qkv_MJD, self._kv_heads)
        if self._rows is None:
            self._written[layer].copy_(kv_M2KD.transpose(0, 1))
        else:
            both = self._columns.both[layer]
            both[:, self._rows, :, self._column] = kv_M2KD.to(both.dtype)
        return self._attend(q_MHD, *self._read[layer], self._bias)

    def cross(self, layer: int, q_MHD: Tensor) -> Tensor:
        assert self._cross is not None
        keys, values = self._cross.columns.flat[layer]
        if self._cross.sharing is None:
            return self._attend(q_MHD, keys, values, self._cross_bias)
        return over_prompts(q_MHD, keys, values, self._cross_bias, self._scale, self._cross.sharing)

    def _attend(self, q_MHD: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        if q_MHD.dtype is not keys.dtype:
            q_MHD = q_MHD.to(keys.dtype)
        q_BGD, k_BDL = q_MHD.reshape(self._shape), keys.transpose(1, 2)
        if bias is None:
            score_BGL = torch.baddbmm(self._nothing, q_BGD, k_BDL, beta=0, alpha=self._scale)
        else:
            score_BGL = torch.baddbmm(bias, q_BGD, k_BDL, alpha=self._scale)
        return torch.bmm(score_BGL.softmax(-1), values).view(len(q_MHD), -1)


def parted(qkv_MJD: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """(queries [M,H,D], keys and values [M,2,K,D])."""
    H = qkv_MJD.shape[1] - 2 * K
    return qkv_MJD[:, :H], qkv_MJD[:, H:].view(-1, 2, K, qkv_MJD.shape[2])


def hiding(real_nL: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where something real stands, −∞ where nothing does."""
    return torch.zeros(real_nL.shape, dtype=dtype, device=real_nL.device).masked_fill_(~real_nL, -math.inf)


def _readable(real_nP: Tensor) -> Tensor:
    """[n,1,P,P] bool: what each column reads. Padding reads itself, so that no row of a softmax is empty."""
    P = real_nP.shape[1]
    before_PP = torch.ones(P, P, dtype=torch.bool, device=real_nP.device).tril()
    itself_PP = torch.eye(P, dtype=torch.bool, device=real_nP.device)
    return ((before_PP & real_nP[:, None]) | itself_PP)[:, None]


def _with_distance(relative: Relative, device: torch.device, length: int, mask: Tensor | None) -> Tensor:
    """[·,H,P,P]: the bias of how far back a key is, −∞ at what is not read."""
    places = torch.arange(length, device=device)
    back_PP = places[:, None] - places
    if mask is None:
        mask = (back_PP >= 0)[None, None]
    return relative(back_PP.clamp_min(0)).permute(2, 0, 1)[None].masked_fill(~mask, -math.inf)
