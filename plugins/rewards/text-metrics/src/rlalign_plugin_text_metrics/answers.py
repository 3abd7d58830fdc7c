"""Answers as SQuAD compares them: exact match, and F1 of their words (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from rlalign import Example
from rlalign_plugin_text_metrics.metric import TextMetric, references

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@lru_cache(2048)
def bare(text: str) -> str:
    """Small letters without ASCII punctuation, articles and double spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, others: Sequence[str]) -> float:
    """1 if the text is one of the others, bare."""
    return float(any(bare(text) == bare(other) for other in others))


def token_f1(text: str, others: Sequence[str]) -> float:
    """The largest F1 of the words with one of the others; 1 if both are without words, 0 if one is."""
    return max(_f1(bare(text).split(), bare(other).split()) for other in others)


def _f1(mine: Sequence[str], theirs: Sequence[str]) -> float:
    if not mine or not theirs:
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs))


class ExactMatch(TextMetric):
    """1 if the response is one of the references, but for case, punctuation and articles, else 0."""

    paper = "Rajpurkar et al. 2016, SQuAD: 100,000+ questions for machine comprehension of text"
    bounds = (0.0, 1.0)

    def signature(self) -> str:
        return "nrefs:var|case:lc|norm:squad"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [exact_match(text, references(e, self.name)) for text, e in zip(texts, examples, strict=True)]


class TokenF1(TextMetric):
    """F1 of the response's words with a reference's, the best over references, normalised as SQuAD does."""

    paper = "Rajpurkar et al. 2016, SQuAD: 100,000+ questions for machine comprehension of text"
    bounds = (0.0, 1.0)

    def signature(self) -> str:
        return "nrefs:var|case:lc|norm:squad"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [token_f1(text, references(e, self.name)) for text, e in zip(texts, examples, strict=True)]
