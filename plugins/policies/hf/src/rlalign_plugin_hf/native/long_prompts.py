"""Attention to long prompts that several responses share.

Legend: n rows, G prompts, k most rows a prompt has, P columns of prompts, R columns of responses, H query heads,
K key heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlalign_plugin_hf.native.attention import Columns
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
        self._prompts, self._sharing, self._own = prompts, sharing, own
        self._scale, self._column = scale, column
        self._nothing = own.both.new_empty(1)
        K, P = prompts.both.shape[3:5]
        self._bias = None if bias_GP is None else bias_GP[:, None].expand(-1, K, P).reshape(-1, 1, P)

    def __call__(self, layer: int, q_MHD: Tensor, k_MKD: Tensor, v_MKD: Tensor) -> Tensor:
        keys, values = self._own.layers[layer]
        keys[:, :, self._column] = k_MKD
        values[:, :, self._column] = v_MKD
        n, K, D = k_MKD.shape
        q_nKgD = q_MHD.to(keys.dtype).contiguous().view(n, K, -1, D)
        flat_q, (keys, values) = q_nKgD.reshape(n * K, -1, D), self._own.flat[layer]
        used = self._column + 1
        own_BgR = torch.baddbmm(
            self._nothing, flat_q, keys[:, :used].transpose(1, 2), beta=0, alpha=self._scale
        )
        prompt_nKgP = self._sharing.by_row(
            scores(self._sharing.by_prompt(q_nKgD), self._prompts.flat[layer][0], self._bias, self._scale), K
        )
        P = prompt_nKgP.shape[3]
        share = torch.cat([prompt_nKgP.reshape(n * K, -1, P), own_BgR], 2).softmax(2)
        found_BgD = torch.bmm(share[..., P:], values[:, :used])
        of_prompt = self._sharing.by_prompt(share[..., :P].view(n, K, -1, P))
        found_nKgD = self._sharing.by_row(torch.bmm(of_prompt, self._prompts.flat[layer][1]), K)
        return (found_nKgD.reshape(n * K, -1, D) + found_BgD).view(n, -1)

    def cross(self, layer: int, q_MHD: Tensor) -> Tensor:
        raise NotImplementedError("prompts and responses are one row")
