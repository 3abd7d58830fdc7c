"""Texts as vectors: a bag of words, or what a user's function says. Legend: n texts, C width."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rlalign import ComponentError
from rlalign_plugin_function_reward.source import named

WIDTH = 256
"""Of a bag of words whose vocabulary is not known: two words may share a place."""


class Embedder:
    """A function from a list of texts to a matrix [n,C], of whatever kind; none: a bag of words."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._function = named(path) if path else None

    def __call__(self, texts: Sequence[str], *, width: int | None = None) -> Tensor:
        """[n,C], float64. Without `width` the places of a bag of words fit these texts and no others."""
        if self._function is None or self.path is None:
            return bags(texts, width)
        found = torch.as_tensor(self._function(list(texts))).detach().to("cpu", torch.float64)
        if found.ndim != 2 or len(found) != len(texts):
            raise ComponentError(
                f"`{self.path.name}` must return a vector for each of {len(texts)} texts, got {tuple(found.shape)}"
            )
        return found


def bags(texts: Sequence[str], width: int | None = None) -> Tensor:
    """[n,C]: how often each word stands in each text. Each has a place of its own, or with `width` one by its hash."""
    split = [re.findall(r"\w+", text.lower()) for text in texts]
    words = sorted({word for some in split for word in some})
    places = (
        {word: zlib.crc32(word.encode()) % width for word in words}
        if width
        else {word: place for place, word in enumerate(words)}
    )
    bags_nC = torch.zeros(len(texts), width or max(1, len(words)), dtype=torch.float64)
    for row, some in enumerate(split):
        for word in some:
            bags_nC[row, places[word]] += 1
    return bags_nC


def alignment(first_nC: Tensor, now_nC: Tensor, asked_nC: Tensor) -> Tensor:
    """[n]: the cosine of what has changed since the start with what is asked for; 0 where nothing has."""
    return (normalize(now_nC - first_nC, dim=-1) * normalize(asked_nC, dim=-1)).sum(-1)
