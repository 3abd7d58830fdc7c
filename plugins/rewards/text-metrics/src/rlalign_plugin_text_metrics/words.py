"""Words, sentences and n-grams of a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeVar
from unicodedata import normalize

import regex
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from rlalign_plugin_text_metrics.tokens import penn, stem

Token = TypeVar("Token")

CACHED = 2048
"""Texts whose words are remembered."""
LONGEST = 64
"""Letters of a word that has a stem."""

_END = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W_a-z])|\n+|(?<=[。！？])")
_NO_END = re.compile(
    r"(?<![^\s(\"'])(?:[A-Z]|Mrs?|Ms|Dr|Prof|St|Jr|Sr|Gen|Col|Lt|vs|No|e\.g|i\.e|[A-Z]\.[A-Z])\.$"
)
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’\-][\p{L}\p{M}\p{N}]+)*")


def sentences(text: str) -> list[str]:
    """The sentences: a line ends one, and so does a full stop before white space and what is no small letter.

    Initials and a few titles (`J.`, `Dr.`) end none.
    """
    found, start = [], 0
    for end in _END.finditer(text):
        if "\n" in end[0] or not _NO_END.search(text, max(start, end.start() - 12), end.start()):
            found.append(text[start : end.end()].strip())
            start = end.end()
    return [sentence for sentence in (*found, text[start:].strip()) if sentence]


def words(text: str) -> tuple[str, ...]:
    """The words in small letters; apostrophes and hyphens within one belong to it, other punctuation is left out."""
    return tuple(_WORD.findall(normalize("NFC", text.lower())))


_13A: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]


@lru_cache(CACHED)
def normalised(text: str) -> tuple[str, ...]:
    """The tokens of sacreBLEU's 13a in small letters."""
    return tuple(_13A(text.strip().lower()).split())


@lru_cache(CACHED)
def treebank(text: str) -> tuple[str, ...]:
    """The tokens of the Penn Treebank in small letters."""
    return tuple(token.lower() for token in penn(text))


def short_stem(word: str) -> str:
    """Porter's stem; of what is too long for a word, itself."""
    return stem(word) if len(word) <= LONGEST else word


def ngrams(tokens: Sequence[Token], order: int) -> Iterator[tuple[Token, ...]]:
    """All runs of `order` tokens, from the first to the last."""
    return zip(*(tokens[i:] for i in range(order)), strict=False)
