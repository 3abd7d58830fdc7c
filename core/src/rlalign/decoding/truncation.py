"""Top-k, top-p and min-p: which tokens a truncation leaves to choose from."""

from __future__ import annotations

import math

from torch import Tensor

from rlalign.data.settings import Sampling
from rlalign.decoding.choosing import only
from rlalign.decoding.nucleus import nucleus


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
