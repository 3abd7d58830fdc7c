"""How kind VADER finds a text, between −1 and 1: a lexicon and rules (Hutto and Gilbert 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def compound(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """The compound score of prompt and response."""
    return [
        float(_analyzer().polarity_scores(f"{prompt} {text.strip()}")["compound"])
        for prompt, text in zip(prompts, texts, strict=True)
    ]
