"""How kind VADER finds a response, between −1 and 1: a lexicon and rules (Hutto and Gilbert 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def compound(texts: Sequence[str]) -> list[float]:
    """The compound score."""
    return [float(_analyzer().polarity_scores(text)["compound"]) for text in texts]
