"""Keywords that a response should hold, and a prompt that it should not repeat: CommonGen's (Lin et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from pydantic import Field

from rlalign import ComponentError, Example, Options
from rlalign_plugin_text_metrics.metric import TextMetric
from rlalign_plugin_text_metrics.words import short_stem, words

Match = Literal["word", "substring", "stem"]


def coverage(text: str, keywords: Sequence[str], match: Match = "stem") -> float:
    """The share of the keywords that the text holds; 1 of none."""
    if not keywords:
        return 1.0
    held = read(text, match)
    return sum(read_keyword(keyword, match) in held for keyword in keywords) / len(keywords)


def read(text: str, match: Match) -> str:
    """The text so that a keyword read alike is in it if it is held: its words between spaces, or as it is."""
    if match == "substring":
        return text.lower()
    how: Callable[[str], str] = short_stem if match == "stem" else str
    parts = (part for word in words(text) for part in _with_parts(word))
    return f" {' '.join(how(part) for part in parts)} "


def _with_parts(word: str) -> Sequence[str]:
    """`ice-cream` holds `ice-cream`, `ice` and `cream`; `dog's` holds `dog`."""
    parts = word.replace("’", "'").replace("'", "-").split("-")
    return (word, *parts) if len(parts) > 1 else (word,)


@lru_cache(8192)
def read_keyword(keyword: str, match: Match) -> str:
    if match == "substring":
        return keyword.lower()
    return f" {' '.join(short_stem(w) if match == 'stem' else w for w in words(keyword))} "


def keywords_of(example: Example, key: str, asked_by: str) -> tuple[str, ...]:
    """The keywords: a list of texts, or one text of words."""
    found = example.meta.get(key)
    if isinstance(found, str):
        return tuple(found.split())
    if found is None or not all(isinstance(each, str) for each in found):
        keys = ", ".join(example.meta) or "none"
        what = "no such key" if found is None else "no list of texts"
        raise ComponentError(
            f"`{asked_by}` reads keywords from `meta[{key!r}]`, and in example `{example.id}` that is {what} "
            f"(it holds: {keys}); set `key`"
        )
    return tuple(found)


class Coverage(TextMetric):
    """The share of the keywords in `meta` that a response holds."""

    paper = "Lin et al. 2020, CommonGen: a constrained text generation challenge for generative commonsense reasoning"
    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `coverage`."""

        key: str = Field(
            "keywords", description="the key of `meta` that lists the keywords, or says them in one text"
        )
        match: Match = Field(
            "stem",
            description="stem: a word with the same Porter stem; word: the word itself; substring: anywhere, "
            "within another word too (as RL4LMs counts missing concepts)",
        )

    config: Config

    def signature(self) -> str:
        return f"case:lc|match:{self.config.match}"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        c = self.config
        return [
            coverage(text, keywords_of(example, c.key, self.name), c.match)
            for text, example in zip(texts, examples, strict=True)
        ]


def spelt_out(text: str, keywords: Sequence[str], phrases: Sequence[str]) -> bool:
    """Whether the text holds all keywords in a row, or one of the phrases, whatever the case."""
    low = text.lower()
    row = " ".join(keywords).lower()
    return bool(row and row in low) or any(phrase.lower() in low for phrase in phrases)


class CommonGenPenalty(TextMetric):
    """−1 if a response spells out the keywords in a row or words of the instruction, else 0: RL4LMs' shaping."""

    paper = "Ramamurthy et al. 2023, Is reinforcement learning (not) for natural language processing"
    bounds = (-1.0, 0.0)

    class Config(Options):
        """Options of `commongen-penalty`."""

        key: str = Field(
            "keywords", description="the key of `meta` that lists the keywords, or says them in one text"
        )
        phrases: tuple[str, ...] = Field(
            ("generate", "sentence"),
            description="what no response may hold: the words of RL4LMs' instruction",
        )

    config: Config

    def signature(self) -> str:
        return "case:lc|phrases:" + ",".join(self.config.phrases)

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        c = self.config
        return [
            -1.0 if spelt_out(text, keywords_of(example, c.key, self.name), c.phrases) else 0.0
            for text, example in zip(texts, examples, strict=True)
        ]
