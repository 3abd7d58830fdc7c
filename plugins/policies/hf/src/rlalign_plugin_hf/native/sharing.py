"""Prompts whose keys and values stand once, for all the responses to them.

The queries of a prompt's rows are the rows of one matrix product, so that a long prompt is read from memory once a
step, and not once for each of its responses.

Legend: n rows, G prompts, k most rows a prompt has, P columns of prompts, g queries that share a key head, H query
heads, K key heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Sharing:
    """Which row reads which prompt."""

    def __init__(self, which_n: Tensor) -> None:
        self.which_n = which_n
        """Of 0 to G−1, each at least once."""
        count_G = torch.bincount(which_n)
        self.prompts, self.most = len(count_G), int(count_G.max())
        """G and k."""
        every_n = torch.arange(len(which_n), device=which_n.device)
        order_n = which_n.argsort(stable=True)
        within_n = torch.empty_like(which_n)
        within_n[order_n] = every_n - (count_G.cumsum(0) - count_G)[which_n[order_n]]
        self._place_n = which_n * self.most + within_n
        full = len(which_n) == self.prompts * self.most
        self._even = full and bool((self._place_n == every_n).all())
        self._row_Gk = torch.zeros(self.prompts * self.most, dtype=torch.long, device=which_n.device)
        self._row_Gk[self._place_n] = every_n

    def kept(self, rows: Tensor) -> tuple[Sharing, Tensor | None]:
        """(that of these rows, the prompts that are left; None: all)."""
        which_n = self.which_n[rows]
        left, which_n = which_n.unique(return_inverse=True)
        return Sharing(which_n), None if len(left) == self.prompts else left

    def by_prompt(self, x_nK: Tensor) -> Tensor:
        """[n,K,g,X] -> [G·K,k·g,X]; what is missing repeats some row."""
        _, K, group, X = x_nK.shape
        if not self._even:
            x_nK = x_nK.index_select(0, self._row_Gk)
        x_GKk = x_nK.reshape(self.prompts, self.most, K, group, X).transpose(1, 2)
        return x_GKk.reshape(self.prompts * K, self.most * group, X)

    def by_row(self, x_BX: Tensor, K: int) -> Tensor:
        """[G·K,k·g,X] -> [n,K,g,X]."""
        X = x_BX.shape[2]
        x_Gk = x_BX.view(self.prompts, K, self.most, -1, X).transpose(1, 2)
        x_nK = x_Gk.reshape(self.prompts * self.most, K, -1, X)
        return x_nK if self._even else x_nK.index_select(0, self._place_n)


def over_prompts(
    q_MHD: Tensor, keys_BPD: Tensor, values_BPD: Tensor, bias: Tensor | None, scale: float, sharing: Sharing
) -> Tensor:
    """[n,H·D] of attention to shared prompts alone; `bias` [G·K,1,P]."""
    n, H, D = q_MHD.shape
    K = len(keys_BPD) // sharing.prompts
    q_nKgD = q_MHD.to(keys_BPD.dtype).contiguous().view(n, K, H // K, D)
    share = scores(sharing.by_prompt(q_nKgD), keys_BPD, bias, scale).softmax(2)
    return sharing.by_row(torch.bmm(share, values_BPD), K).reshape(n, H * D)


def scores(q_BqD: Tensor, keys_BPD: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Queries times keys, scaled."""
    keys_BDP = keys_BPD.transpose(1, 2)
    if bias is None:
        return torch.baddbmm(q_BqD.new_empty(1), q_BqD, keys_BDP, beta=0, alpha=scale)
    return torch.baddbmm(bias, q_BqD, keys_BDP, alpha=scale)
