"""What the sampling loop chooses, and from what: by walking lists, as slowly and plainly as can be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlalign.data.settings import Sampling


def by_walking(probs: Sequence[float], u: float) -> int:
    """The first token whose cumulative probability exceeds u times the total; never one of probability 0."""
    target, reached, last = u * math.fsum(probs), 0.0, 0
    for i, p in enumerate(probs):
        if p > 0:
            last, reached = i, reached + p
            if reached > target:
                return i
    return last


def reference(logits: list[float], how: Sampling) -> set[int]:
    """By sorting a list. Ties: top-k keeps all that equal the k-th, top-p the first of them."""
    order = sorted((v for v, z in enumerate(logits) if z > -math.inf), key=lambda v: -logits[v])
    if how.top_k and how.top_k < len(order):
        order = [v for v in order if logits[v] >= logits[order[how.top_k - 1]]]
    kept = set(order)
    if how.top_p < 1:
        weights = [math.exp(logits[v] - logits[order[0]]) for v in order]
        total, reached, kept = math.fsum(weights), 0.0, set()
        for v, w in zip(order, weights, strict=True):
            if not kept or reached < how.top_p:
                kept.add(v)
            reached += w / total
    if how.min_p:
        kept = {v for v in kept if logits[v] >= logits[order[0]] + math.log(how.min_p)}
    return kept
