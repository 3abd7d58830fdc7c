"""Top-p: the smallest sets of most probable tokens that reach a probability, exactly.

Every way looks for the least logit that a set holds, and how many of those that equal it: a CPU sorts, in large
vocabularies only what lies around the edge; a GPU halves the range of logits, and is never waited for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

HISTOGRAM_FROM = 1536
"""Vocabularies from which a histogram finds the edge, instead of sorting everything."""
_BINS = 1024
_PIECE = 1 << 17
"""Entries that a CPU looks at together: what lies in between then stays in its cache."""


class _Edge(NamedTuple):
    """Where the sets end: at a place of ascending logits."""

    sorted_nE: Tensor
    place_n1: Tensor
    least_n1: Tensor
    """The least logit kept; NaN in a row that is no distribution."""


def nucleus(logits_nV: Tensor, top_p: float) -> Tensor:
    """[n,V] bool: the smallest sets of most probable tokens whose probability reaches `top_p`; with 1 everything.

    Of equals at the edge the first are kept. A row that is no distribution keeps nothing.
    """
    if top_p >= 1:  # a sum that rounds to 1 early would cut the tail
        return at_least(logits_nV, torch.finfo(logits_nV.dtype).min)
    if logits_nV.device.type != "cpu":
        return _by_halving(logits_nV, top_p)
    return _in_pieces(logits_nV, top_p, logits_nV.shape[1] < HISTOGRAM_FROM)


def at_least(logits_nV: Tensor, least: Tensor | float) -> Tensor:
    """Which are not below a bound. (NumPy compares in a fifth of the time.)"""
    if logits_nV.device.type != "cpu":
        return logits_nV >= least
    bound = least.numpy() if isinstance(least, Tensor) else least
    return torch.from_numpy(logits_nV.detach().numpy() >= bound)


def _in_pieces(logits_nV: Tensor, top_p: float, sorts: bool) -> Tensor:
    count, vocabulary = logits_nV.shape
    kept_nV = torch.empty(count, vocabulary, dtype=torch.bool)
    together = max(1, _PIECE // vocabulary)
    for piece_mV, kept_mV in zip(logits_nV.detach().split(together), kept_nV.split(together), strict=True):
        edge = _by_sorting(piece_mV, top_p) if sorts else _by_histogram(piece_mV, top_p)
        _keep(piece_mV, edge, kept_mV)
    return kept_nV


def _by_sorting(logits_nV: Tensor, top_p: float) -> _Edge:
    sorted_nV = _ascending(logits_nV)
    reached_nV = sorted_nV.softmax(1).cumsum(1, dtype=torch.float64)
    # A token is kept while what stands before it, the total less all up to it, is less than top_p of the total.
    return _edge(sorted_nV, reached_nV, (1 - top_p) * reached_nV[:, -1:])


def _by_histogram(logits_nV: Tensor, top_p: float) -> _Edge:
    """B bins by nats below the best hold the probability; only the bin where its sum reaches `top_p` is sorted."""
    count, vocabulary = logits_nV.shape
    top_n1, probs_nV = logits_nV.amax(1, keepdim=True), logits_nV.softmax(1)
    # Deeper than this there are less than 1 - top_p in all, and so no edge.
    deepest = math.log(vocabulary) - math.log1p(-top_p)
    range_n1 = (top_n1 - logits_nV.amin(1, keepdim=True)).clamp(1e-6, deepest)
    # Two bounds, as a NaN slips through the first; it becomes NaN in the sums, and keeps nothing.
    bin_nV = (top_n1 - logits_nV).mul_(_BINS / range_n1).clamp_max_(_BINS - 1).int().clamp_min_(0)
    mass_nB = probs_nV.new_zeros(count, _BINS).scatter_add_(1, bin_nV.long(), probs_nV).double()
    reached_nB = mass_nB.cumsum(1)
    target_n1 = top_p * reached_nB[:, -1:]
    edge_n1 = torch.searchsorted(reached_nB, target_n1).clamp_max_(_BINS - 1)
    before_n1 = (reached_nB - mass_nB).gather(1, edge_n1)
    # (NumPy finds them in a tenth of the time.)
    place_K = torch.from_numpy(numpy.flatnonzero(bin_nV.numpy() == edge_n1.int().numpy()))
    row_K = place_K // vocabulary
    count_n = torch.bincount(row_K, minlength=count)
    column_K = torch.arange(len(row_K)) - (count_n.cumsum(0) - count_n)[row_K]
    edge_nE = logits_nV.new_full((count, int(count_n.max())), -math.inf)
    edge_nE[row_K, column_K] = logits_nV.flatten()[place_K]
    sorted_nE = _ascending(edge_nE)
    most_n1 = probs_nV.amax(1, keepdim=True).double()
    reached_nE = (sorted_nE - top_n1).double().exp().mul_(most_n1).cumsum(1)
    return _edge(sorted_nE, reached_nE, (before_n1 - target_n1 + reached_nE[:, -1:]).clamp_min_(0))


def _by_halving(logits_nV: Tensor, top_p: float) -> Tensor:
    """One bit of the least logit after the other, most significant first: the sums say whether it is set."""
    probs_nV = logits_nV.softmax(1)
    whole = torch.int32 if logits_nV.dtype == torch.float32 else torch.int64
    bits_nV = (logits_nV + 0.0).view(whole)  # no zero is negative then
    key_nV = torch.where(bits_nV < 0, bits_nV ^ torch.iinfo(whole).max, bits_nV)  # in the order of the logits
    low_n1, high_n1 = key_nV.amin(1, keepdim=True), key_nV.amax(1, keepdim=True)
    target_n1 = top_p * probs_nV.sum(1, keepdim=True, dtype=torch.float64)
    for _ in range(torch.iinfo(whole).bits):
        middle_n1 = (low_n1 | high_n1) - ((low_n1 ^ high_n1) >> 1)  # their mean, rounded up, without overflow
        mass_n1 = (probs_nV * (key_nV >= middle_n1)).sum(1, keepdim=True, dtype=torch.float64)
        reaches_n1 = mass_n1 >= target_n1
        low_n1 = torch.where(reaches_n1, middle_n1, low_n1)
        high_n1 = torch.where(reaches_n1, high_n1, torch.maximum(middle_n1 - 1, low_n1))
    equal_nV = key_nV == low_n1
    least_n1 = torch.where(equal_nV, logits_nV, -math.inf).amax(1, keepdim=True)
    before_n1 = (probs_nV * (key_nV > low_n1)).sum(1, keepdim=True, dtype=torch.float64)
    each_n1 = (probs_nV * equal_nV).amax(1, keepdim=True)
    equal_n1 = ((target_n1 - before_n1) / each_n1).ceil().clamp_min(1)
    return _first_equals(logits_nV, least_n1.masked_fill(target_n1.isnan(), math.nan), equal_n1)


def _edge(sorted_nE: Tensor, reached_nE: Tensor, over_n1: Tensor) -> _Edge:
    """The first of ascending logits where what is reached exceeds `over`."""
    place_n1 = torch.searchsorted(reached_nE, over_n1, right=True).clamp_max_(sorted_nE.shape[1] - 1)
    least_n1 = sorted_nE.gather(1, place_n1)
    return _Edge(sorted_nE, place_n1, least_n1.masked_fill_(reached_nE[:, -1:].isnan(), math.nan))


def _ascending(logits_nV: Tensor) -> Tensor:
    """Sorted. (NumPy does it in a tenth of the time, as it need not say where each came from.)"""
    return torch.from_numpy(numpy.sort(logits_nV.numpy(), axis=1))


def _keep(logits_nV: Tensor, edge: _Edge, kept_nV: Tensor) -> None:
    """Set what is kept."""
    numpy.greater_equal(logits_nV.numpy(), edge.least_n1.numpy(), out=kept_nV.numpy())
    before_n1 = edge.sorted_nE.gather(1, (edge.place_n1 - 1).clamp_min_(0))
    if bool((before_n1 == edge.least_n1).any()):  # of equals some may be left out
        equal_n1 = torch.searchsorted(edge.sorted_nE, edge.least_n1, right=True) - edge.place_n1
        kept_nV.copy_(_first_equals(logits_nV, edge.least_n1, equal_n1))


def _first_equals(logits_nV: Tensor, least_n1: Tensor, equal_n1: Tensor) -> Tensor:
    """Which exceed the least logit kept, or are among the first so many that equal it."""
    equal_nV = logits_nV == least_n1
    return (logits_nV > least_n1) | (equal_nV & (equal_nV.cumsum(1) <= equal_n1))
