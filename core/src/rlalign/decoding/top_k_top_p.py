"""Top-k, top-p and min-p: which tokens a truncation leaves to choose from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlalign.data.settings import Sampling
from rlalign.decoding.choosing import only

HISTOGRAM_FROM = 512
"""Vocabularies from which a nucleus is found with a histogram, instead of by sorting all of it."""
_BINS = 1024
_PIECE = 1 << 17
"""Entries that such a histogram looks at together: what lies in between then stays in a processor's cache."""


def truncate(logits_nV: Tensor, how: Sampling) -> Tensor:
    """[n,V] bool: what top-k, then top-p, then min-p keep of (scaled, banned) logits. The best stays."""
    kept_nV = best(logits_nV, how.top_k)
    if how.top_p < 1:
        kept_nV &= nucleus(only(logits_nV, kept_nV), how.top_p)
    if how.min_p > 0:
        bar_n1 = logits_nV.amax(1, keepdim=True) + math.log(how.min_p)
        kept_nV &= logits_nV >= bar_n1
    return kept_nV


def best(logits_nV: Tensor, top_k: int) -> Tensor:
    """The k most probable tokens, and those that equal the k-th; with 0 everything."""
    kept_nV = logits_nV > -math.inf
    if 0 < top_k < logits_nV.shape[1]:
        kept_nV &= logits_nV >= logits_nV.topk(top_k, dim=1, sorted=False).values.amin(1, keepdim=True)
    return kept_nV


def nucleus(logits_nV: Tensor, top_p: float) -> Tensor:
    """The smallest sets of most probable tokens whose probability reaches `top_p`; with 1 everything."""
    count, vocabulary = logits_nV.shape
    if top_p >= 1:  # a sum that rounds to 1 early would cut the tail
        return logits_nV > -math.inf
    if vocabulary < HISTOGRAM_FROM or count == 0:
        return _by_sorting(logits_nV, top_p)
    together = max(1, _PIECE // vocabulary) if logits_nV.device.type == "cpu" else count
    return torch.cat([_by_histogram(piece_nV, top_p) for piece_nV in logits_nV.split(together)])


def _by_histogram(logits_nV: Tensor, top_p: float) -> Tensor:
    """`_by_sorting`, but of the tokens around the edge only: B bins by nats below the best hold the probability,
    the bins before the one where its sum reaches `top_p` are kept whole, and that one is sorted.
    """
    count, vocabulary = logits_nV.shape
    top_n1 = logits_nV.amax(1, keepdim=True).clamp_min(torch.finfo(logits_nV.dtype).min)
    depth_nV = top_n1 - logits_nV
    # Deeper than this there are less than 1 - top_p in all, and so no edge.
    deepest = math.log(vocabulary) - math.log1p(-top_p)
    range_n1 = depth_nV.amax(1, keepdim=True).clamp(1e-6, deepest)
    # Two bounds, as a NaN slips through the first; it becomes NaN in the sums, and keeps nothing.
    bin_nV = (depth_nV * (_BINS / range_n1)).clamp_max_(_BINS - 1).int().clamp_min_(0)
    # In double precision the order of summation moves nothing.
    mass_nV = depth_nV.neg_().exp_().double()
    mass_nB = mass_nV.new_zeros(count, _BINS).scatter_add_(1, bin_nV.long(), mass_nV)
    reached_nB = mass_nB.cumsum(1)
    target_n1 = top_p * reached_nB[:, -1:]
    edge_n1 = (reached_nB < target_n1).sum(1, keepdim=True)
    before_n1 = torch.cat([torch.zeros_like(target_n1), reached_nB], 1).gather(1, edge_n1)
    kept_nV = bin_nV < edge_n1.int()
    row_K, column_K = (bin_nV == edge_n1.int()).nonzero(as_tuple=True)
    count_n = torch.bincount(row_K, minlength=count)
    tied_n = count_n > vocabulary // 4  # nothing is gained for these; no row may depend on its neighbours
    if bool(tied_n.any()):
        kept_nV[tied_n] = _by_sorting(logits_nV[tied_n], top_p)
        kept_nV[~tied_n] = nucleus(logits_nV[~tied_n], top_p)
        return kept_nV
    place_K = torch.arange(len(row_K), device=row_K.device) - (count_n.cumsum(0) - count_n)[row_K]
    edge_nE = logits_nV.new_full((count, int(count_n.max())), -math.inf)
    edge_nE[row_K, place_K] = logits_nV[row_K, column_K]
    sorted_nE, order_nE = torch.sort(edge_nE, dim=1, descending=True, stable=True)
    mass_nE = (sorted_nE - top_n1).exp().double()
    keep_nE = (before_n1 + mass_nE.cumsum(1) - mass_nE < target_n1) & (sorted_nE > -math.inf)
    kept_nV[row_K, column_K] = torch.zeros_like(keep_nE).scatter_(1, order_nE, keep_nE)[row_K, place_K]
    return kept_nV


def _by_sorting(logits_nV: Tensor, top_p: float) -> Tensor:
    sorted_nV, order_nV = torch.sort(logits_nV, dim=1, descending=True, stable=True)
    probs_nV = sorted_nV.softmax(1)
    before_nV = probs_nV.cumsum(1) - probs_nV
    keep_nV = (before_nV < top_p) & (sorted_nV > -math.inf)
    return torch.zeros_like(keep_nV).scatter_(1, order_nV, keep_nV)
