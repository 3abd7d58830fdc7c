"""What the worlds' rewards and metrics read of a rollout."""

from __future__ import annotations

from collections.abc import Sequence

from rlalign import Rollout


def whole_texts(rollout: Rollout) -> list[str]:
    """Prompt and response of every row, in one line."""
    groups = rollout.group_N.tolist()
    return [f"{rollout.examples[g].prompt} {t}" for g, t in zip(groups, rollout.texts, strict=True)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words, as a share of all; 0 where there are none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
