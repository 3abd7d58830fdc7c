"""The reward of common-gen-nlpo.yaml: are all words used, once each, in a sentence like the references?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def stem(word: str) -> str:
    """Enough of a stem for `dogs`, `throws` and `throwing` to count as `dog` and `throw`."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending)
    return word


def overlap(mine: Sequence[str], theirs: Sequence[str]) -> float:
    """F1 of the words two sentences share."""
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * shared / max(1, len(mine) + len(theirs))


def quality(
    texts: Sequence[str], references: Sequence[Sequence[str]], meta: Sequence[Mapping[str, Any]]
) -> list[float]:
    """½ share of concepts used + ½ likeness to the nearest reference − ½ for each concept said twice or more."""
    scores = []
    for text, right, known in zip(texts, references, meta, strict=True):
        said = words(text)
        counts = Counter(map(stem, said))
        concepts = [stem(c) for c in known["concepts"]]
        used = sum(counts[c] > 0 for c in concepts) / len(concepts)
        again = sum(counts[c] > 1 for c in concepts)
        scores.append(0.5 * used + 0.5 * max(overlap(said, words(r)) for r in right) - 0.5 * again)
    return scores
