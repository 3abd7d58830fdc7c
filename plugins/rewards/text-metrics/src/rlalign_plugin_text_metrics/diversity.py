"""How varied the words of all responses together are, as the GEM benchmark measures it."""

from __future__ import annotations

import math
import statistics
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rlalign import Component, Options, Rollout, hookimpl
from rlalign_plugin_text_metrics.words import ngrams, treebank

PUNCTUATION = frozenset(string.punctuation)
ORDERS = (1, 2, 3)

Tokens = Sequence[Sequence[str]]


def diversity(texts: Tokens) -> dict[str, float]:
    """Lengths, and of n-grams: how many there are, how many once, what share is distinct, their entropies."""
    if not texts:
        return {}
    lengths = [len(tokens) for tokens in texts]
    found: dict[str, float] = {
        "total_length": sum(lengths),
        "mean_pred_length": statistics.fmean(lengths),
        "std_pred_length": statistics.pstdev(lengths),
        "median_pred_length": statistics.median(lengths),
        "min_pred_length": min(lengths),
        "max_pred_length": max(lengths),
    }
    counts = [Counter(g for tokens in texts for g in ngrams(tokens, n)) for n in ORDERS]
    for n, here in zip(ORDERS, counts, strict=True):
        found[f"distinct-{n}"] = len(here) / here.total() if here else 0.0
        found[f"vocab_size-{n}"] = len(here)
        found[f"unique-{n}"] = sum(count == 1 for count in here.values())
        found[f"entropy-{n}"] = entropy(here)
        if n > 1:
            found[f"cond_entropy-{n}"] = conditional_entropy(here, counts[n - 2])
    return found


def entropy(counts: Counter[Any]) -> float:
    """In bits; 0 of nothing."""
    total = counts.total()
    return math.fsum(-c / total * math.log2(c / total) for c in counts.values())


def conditional_entropy(joint: Counter[tuple[str, ...]], contexts: Counter[tuple[str, ...]]) -> float:
    """Of a word given those before it, in bits: −Σ p(x,y) log₂ p(x,y)/p(x).

    p(x) is the share among all shorter n-grams, those at the end of a text too, as GEM has it.
    """
    pairs, total = joint.total(), contexts.total()
    return math.fsum(
        -count / pairs * math.log2((count / pairs) / (contexts[gram[:-1]] / total))
        for gram, count in joint.items()
    )


def msttr(texts: Tokens, window: int) -> float | None:
    """The mean share of distinct words in windows of all texts in a row; what is left at the end is dropped.

    None: there is no whole window.
    """
    row = [token for tokens in texts for token in tokens]
    shares = [len(set(row[i : i + window])) / window for i in range(0, len(row) - window + 1, window)]
    return round(statistics.fmean(shares), 5) if shares else None


def without_punctuation(texts: Tokens) -> list[list[str]]:
    return [[token for token in tokens if token not in PUNCTUATION] for tokens in texts]


class Diversity(Component):
    """How varied all responses together are: distinct n-grams, vocabulary, entropies, MSTTR, lengths."""

    paper = (
        "van Miltenburg et al. 2018, Measuring the diversity of automatic image descriptions; as GEM-metrics"
    )

    class Config(Options):
        """Options of `diversity`."""

        window: int = Field(100, ge=1, description="words in a window of MSTTR; GEM's")

    config: Config

    def signature(self) -> str:
        return f"case:lc|tok:treebank|window:{self.config.window}"

    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        texts: Tokens = [treebank(text) for text in rollout.texts]
        found: dict[str, float] = {}
        for ending, tokens in (("", texts), ("nopunct", without_punctuation(texts))):
            found |= {f"{name}-{ending}".rstrip("-"): value for name, value in diversity(tokens).items()}
            share = msttr(tokens, self.config.window)
            if share is not None:
                found[f"msttr-{self.config.window}_{ending}".rstrip("_")] = share
        return found
