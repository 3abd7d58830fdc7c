"""SARI: what a simplification kept, added and deleted, against its source and references (Xu et al. 2016)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from rlalign import ComponentError, Example, Options, Rollout, Score, hookimpl
from rlalign_plugin_text_metrics.metric import TextMetric, references
from rlalign_plugin_text_metrics.words import ngrams, normalised

ORDERS = (1, 2, 3, 4)
CACHED = 256


class Sari(NamedTuple):
    """The three parts, each a mean over n = 1…4."""

    keep: float
    add: float
    delete: float

    @property
    def mean(self) -> float:
        return sum(self) / 3


def sari(source: str, text: str, others: Sequence[str], tokenize: str = "13a") -> Sari:
    """F of what was kept, F of what was added, precision of what was deleted; 0 of a text without words."""
    tokens = _split(text, tokenize)
    if not tokens:
        return Sari(0.0, 0.0, 0.0)
    before = _counts((source,), tokenize)
    wanted = _counts(tuple(others), tokenize)
    parts = [
        Sari(*_order(s, Counter(ngrams(tokens, n)), r, len(others)))
        for n, s, r in zip(ORDERS, before, wanted, strict=True)
    ]
    return Sari(*(sum(each) / len(ORDERS) for each in zip(*parts, strict=True)))


@lru_cache(CACHED)
def _counts(texts: tuple[str, ...], tokenize: str) -> tuple[Counter[tuple[str, ...]], ...]:
    """The n-grams of all the texts together, order by order."""
    split = [_split(text, tokenize) for text in texts]
    return tuple(Counter(g for tokens in split for g in ngrams(tokens, n)) for n in ORDERS)


def _split(text: str, tokenize: str) -> tuple[str, ...]:
    return normalised(text) if tokenize == "13a" else tuple(text.lower().split())


def _order(
    source: Counter[Any], text: Counter[Any], wanted: Counter[Any], count: int
) -> tuple[float, float, float]:
    """Keep, add and delete of one n. An n-gram counts once for each of the `count` references."""
    source_all = Counter({g: c * count for g, c in source.items()})
    text_all = Counter({g: c * count for g, c in text.items()})
    kept, to_keep = source_all & text_all, source_all & wanted
    kept_well = kept & wanted
    keep = _f(_mean_share(kept_well, kept), _mean_share(kept_well, to_keep))
    added, to_add = text.keys() - source.keys(), wanted.keys() - source.keys()
    right = len(added & to_add)
    add = _f(_ratio(right, len(added)), _ratio(right, len(to_add)))
    deleted = source_all - text_all
    return keep, add, _mean_share(deleted - wanted, deleted)


def _mean_share(part: Counter[Any], whole: Counter[Any]) -> float:
    """How much of each n-gram of the whole is in the part, on average; 0 of nothing."""
    return _ratio(sum(part[g] / c for g, c in whole.items()), len(whole))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _f(precision: float, recall: float) -> float:
    return _ratio(2 * precision * recall, precision + recall)


class SariMetric(TextMetric):
    """SARI of a simplification: what it kept, added and deleted, against the source and the references."""

    paper = "Xu et al. 2016, Optimizing statistical machine translation for text simplification"
    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `sari`."""

        source: str | None = Field(
            None,
            description="the key of `meta` that holds the source; null: the prompt, of a chat its last message",
        )
        tokenize: Literal["13a", "none"] = Field(
            "13a", description="13a: sacreBLEU's words; none: split at white space, as the paper's script"
        )

    config: Config

    def signature(self) -> str:
        return f"nrefs:var|case:lc|tok:{self.config.tokenize}|order:4|delete:precision|empty:0"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [one.mean for one in self.measured(texts, examples)]

    def measured(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Sari]:
        return [
            sari(self._source(example), text, references(example, self.name), self.config.tokenize)
            for text, example in zip(texts, examples, strict=True)
        ]

    def _source(self, example: Example) -> str:
        key = self.config.source
        if key is None:
            prompt = example.prompt
            return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
        if not isinstance(example.meta.get(key), str):
            keys = ", ".join(example.meta) or "none"
            raise ComponentError(
                f"`{self.name}` reads the source from `meta[{key!r}]`, and example `{example.id}` holds no text "
                f"there (it holds: {keys}); set `source`"
            )
        return str(example.meta[key])

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        parts_N3 = torch.tensor(self.measured(rollout.texts, rollout.answered), dtype=torch.float64).reshape(
            -1, 3
        )
        parts = dict(zip(Sari._fields, parts_N3.unbind(1), strict=True))
        return Score(parts_N3.sum(1) / 3, metrics=parts)
