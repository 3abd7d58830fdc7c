"""Self-BLEU: how far responses say what the others say (Zhu et al. 2018)."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field

from rlalign import Component, Options, Rollout, Score, hookimpl
from rlalign_plugin_text_metrics.words import ngrams, treebank

NEARLY = 0.1
"""Stands for no match of an order (method 1 of Chen & Cherry 2014)."""


def self_bleu(texts: Sequence[Sequence[str]], order: int) -> list[float]:
    """BLEU of each text with all others for references; 0 of a text alone.

    The most that another text holds of an n-gram is the most of all, or the second where the text holds the most
    itself: so all texts take one pass, not one for each.
    """
    if len(texts) < 2:
        return [0.0] * len(texts)
    logs = [0.0] * len(texts)
    for n in range(1, order + 1):
        for i, precision in enumerate(_precisions(texts, n)):
            logs[i] += math.log(precision) / order if precision else -math.inf
    brevity = _brevity([len(text) for text in texts])
    return [math.exp(log) * short for log, short in zip(logs, brevity, strict=True)]


def _precisions(texts: Sequence[Sequence[str]], n: int) -> Iterator[float]:
    """The clipped precision of each text's n-grams; no match is nearly one, but in the first order."""
    counts = [Counter(ngrams(text, n)) for text in texts]
    most: dict[tuple[str, ...], tuple[int, int]] = {}
    for count in counts:
        for gram, c in count.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (max(first, c), max(second, min(first, c)))
    for count in counts:
        matched = 0
        for gram, c in count.items():
            first, second = most[gram]
            matched += min(c, second if c == first else first)
        total = max(1, count.total())
        yield (matched or (NEARLY if n > 1 else 0)) / total


def _brevity(lengths: Sequence[int]) -> Iterator[float]:
    """The penalty of each for being shorter than the other nearest to its length, of two the shorter."""
    order = sorted(lengths)
    for length in lengths:
        at = bisect.bisect_left(order, length)
        others = [order[j] for j in (at - 1, at + 1) if 0 <= j < len(order)]
        near = min(others, key=lambda other: (abs(other - length), other))
        yield math.exp(1 - near / length) if 0 < length < near else 1.0


class SelfBleu(Component):
    """How far a response says what the others to its prompt say, as BLEU; `corpus`: what all responses say."""

    paper = "Zhu et al. 2018, Texygen: a benchmarking platform for text generation models"
    higher_is_better = False
    bounds = (0.0, 1.0)
    min_samples = 2

    class Config(Options):
        """Options of `self-bleu`."""

        order: int = Field(4, ge=1, le=9, description="the longest n-grams")

    config: Config

    def signature(self) -> str:
        return f"case:lc|tok:treebank|order:{self.config.order}|smooth:method1|ref:closest"

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        value_N = torch.zeros(len(rollout), dtype=torch.float64)
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(rollout.group_N.tolist()):
            groups.setdefault(group, []).append(row)
        for rows in groups.values():
            found = self_bleu([treebank(rollout.texts[row]) for row in rows], self.config.order)
            value_N[torch.tensor(rows)] = torch.tensor(found, dtype=torch.float64)
        return Score(value_N)

    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        found = self_bleu([treebank(text) for text in rollout.texts], self.config.order)
        return {"corpus": sum(found) / len(found)} if found else {}
