"""Attention to long prompts that several responses share.

Legend: n rows, G prompts, k most rows a prompt has, P columns of prompts, R columns of responses, H query heads,
K key heads, J = H + 2K, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign_plugin_hf.native.attention import Columns, parted
from rlalign_plugin_hf.native.sharing import Sharing, scores


class SharedStepping:
    """One new token a row: its keys and values go to a column of its response's own, prompts are shared."""

    def __init__(
        self,
        prompts: Columns,
        sharing: Sharing,
        own: Columns,
        scale: float,
        column: int,
        bias_GP: Tensor | None = None,
    ) -> None:
        self._prompts, self._sharing = prompts, sharing
        self._scale, self._written, self._read = scale, own.column(column), own.first(column + 1)
        self._nothing = own.both.new_empty(1)
        self._kv_heads, P = prompts.both.shape[3:5]
        K = self._kv_heads
        self._bias = None if bias_GP is None else bias_GP[:, None].expand(-1, K, P).reshape(-1, 1, P)

    def __call__(self, layer: int, qkv_MJD: Tensor) -> Tensor:
        q_MHD, kv_M2KD = parted(qkv_MJD, self._kv_heads)
        self._written[layer].copy_(kv_M2KD.transpose(0, 1))
        n, _, K, D = kv_M2KD.shape
        keys, values = self._read[layer]
        q_nKgD = q_MHD.to(keys.dtype).contiguous().view(n, K, -1, D)
        flat_q, keys_BDR = q_nKgD.reshape(n * K, -1, D), keys.transpose(1, 2)
        own_BgR = torch.baddbmm(self._nothing, flat_q, keys_BDR, beta=0, alpha=self._scale)
        prompt_nKgP = self._sharing.by_row(
            scores(self._sharing.by_prompt(q_nKgD), self._prompts.flat[layer][0], self._bias, self._scale), K
        )
        P = prompt_nKgP.shape[3]
        share = torch.cat([prompt_nKgP.reshape(n * K, -1, P), own_BgR], 2).softmax(2)
        found_BgD = torch.bmm(share[..., P:], values)
        of_prompt = self._sharing.by_prompt(share[..., :P].view(n, K, -1, P))
        found_nKgD = self._sharing.by_row(torch.bmm(of_prompt, self._prompts.flat[layer][1]), K)
        return (found_nKgD.reshape(n * K, -1, D) + found_BgD).view(n, -1)

    def cross(self, layer: int, q_MHD: Tensor) -> Tensor:
        raise NotImplementedError("prompts and responses are one row")
