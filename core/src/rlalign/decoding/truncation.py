"""Top-k, top-p and min-p: which tokens a truncation leaves to choose from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlalign.data.settings import Sampling
from rlalign.decoding.choosing import only
from rlalign.decoding.nucleus import at_least, nucleus


def truncate(logits_nV: Tensor, how: Sampling) -> Tensor:
    """[n,V] bool: what top-k, then top-p, then min-p keep of (scaled, banned) logits. The best stays."""
    kept_nV = best(logits_nV, how.top_k)
    if how.top_p < 1:
        left_nV = only(logits_nV, kept_nV) if how.top_k else logits_nV
        kept_nV = nucleus(left_nV, how.top_p)
    if how.min_p > 0:
        kept_nV &= at_least(logits_nV, logits_nV.amax(1, keepdim=True) + math.log(how.min_p))
    return kept_nV


def best(logits_nV: Tensor, top_k: int) -> Tensor:
    """The k most probable tokens, and those that equal the k-th; with 0 everything."""
    least_n1 = logits_nV.new_full((len(logits_nV), 1), torch.finfo(logits_nV.dtype).min)
    if 0 < top_k < logits_nV.shape[1]:
        kth_n1 = logits_nV.topk(top_k, dim=1, sorted=False).values.amin(1, keepdim=True)
        least_n1 = torch.maximum(kth_n1, least_n1)
    return at_least(logits_nV, least_n1)
