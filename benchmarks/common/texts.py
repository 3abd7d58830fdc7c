"""Measures of sampled texts that several studies share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

COMPARED = 384
"""Of so many grammatical texts, the first ones, their diversity is taken."""


def of_samples(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A final measurement, from exported samples, a line an example.

    `reward` is half of 1 + what a text of the language is worth (`gated`), 0 for any other.
    """
    texts = [text for row in rows for text in row["responses"]]
    scores: dict[str, list[float]] = {}
    for row in rows:
        for name, values in row["meta"]["rlalign"]["rewards"].items():
            scores.setdefault(name, []).extend(values)
    grammar = scores["toy-grammar"]
    right = (text for text, fits in zip(texts, grammar, strict=True) if fits)
    compared = list(islice(right, COMPARED))
    found = {
        "texts": len(texts),
        "reward": (fmean(grammar) + fmean(scores["gated"])) / 2,
        **({"sentiment": fmean(scores["toy-sentiment"])} if "toy-sentiment" in scores else {}),
        "grammar": fmean(grammar),
        "kl": -fmean(scores["kl"]),
        "length": fmean(len(text.split()) for text in texts),
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        "distinct": len(set(texts)) / len(texts),
    }
    return found | ({"distinct_grammatical": distinct(compared, 3)} if len(compared) == COMPARED else {})


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words within a response, as a share of all; 0 where there are none."""
    grams = [tuple(w[i : i + n]) for w in map(str.split, texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
