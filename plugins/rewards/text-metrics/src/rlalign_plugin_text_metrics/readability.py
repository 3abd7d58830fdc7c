"""How easy an English text is to read: Flesch's reading ease, with syllables counted by rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rlalign import Example
from rlalign_plugin_text_metrics.metric import TextMetric
from rlalign_plugin_text_metrics.words import sentences, words

_VOWELS = re.compile(r"[aeiouy]+")
_CONSONANT_Y = re.compile(r"(?<![^aeiou])y(?=[aeiou])")
_ENDING = re.compile(r"(?<!n)'(?:s|ll|re|ve|d|m|t)?$")
_SILENT = re.compile(
    r"[^aeiouyl]e$|[aeiouy]le$"  # made, while; not table
    r"|[^aeiouytdl]ed$|[aeiouyl]led$"  # walked, called
    r"|[^aeiouysxzcglh]es$|[aeiou]les$|[^cs]hes$"  # times, miles; not houses
    r"|[^aeiouyl]e(?=(?:ly|ful|fully|less|ness|ments?|ty)$)"
    r"|[^aeiouyl]e(?=(?:where|body|thing|one|times?|side|wom[ae]n|m[ae]n|book|ball|hold|work|line|land|how|what)$)"
    r"|(?:o|ea|i)[gq]ues?$|^ev(?=ery)|^bus(?=iness)"
)
"""One vowel less."""
_APART = re.compile(
    r"(?<![tcsgxnl])i[aou](?!ge)|^[^aeiou]*i(?=[ao])(?<=[cglnstx]i)|i(?=at[ei]|et|ers?$|est$|ance|enc|ents?$)(?<![tcsgxd]i(?=e))"
    r"|(?<!g)eo(?!u|n$|ns$|p)|ao|[^gq]u(?=a|en[ct])|uou|[aeiou]ing|[^aeiou]ying"
    r"|ism|[ds]n't$|^idea|^area|creat|^real[ei]|theat|nuclear|museum|^react|^scien"
)
"""Neighbours that are two vowels, or a syllable without a vowel."""


@lru_cache(2**16)
def syllables(word: str) -> int:
    """Groups of vowels, less those that are silent; of what has no vowel (`TV`) the letters."""
    parts = word.lower().replace("’", "'").split("-")
    return sum(_syllables(part) for part in parts if part)


def _syllables(part: str) -> int:
    part = _CONSONANT_Y.sub("j", _ENDING.sub("", part) or part)
    groups = len(_VOWELS.findall(part))
    if not groups:
        return len(part)
    return max(1, groups - len(_SILENT.findall(part)) + len(_APART.findall(part)))


def reading_ease(text: str) -> float:
    """206.835 − 1.015 · words a sentence − 84.6 · syllables a word; 0 of a text without words."""
    found = words(text)
    if not found:
        return 0.0
    count = sum(map(syllables, found))
    parts = sum(bool(words(sentence)) for sentence in sentences(text))
    return 206.835 - 1.015 * len(found) / parts - 84.6 * count / len(found)


class Readability(TextMetric):
    """Flesch reading ease of an English response: 90 and more is very easy, below 30 very hard."""

    paper = "Flesch 1948, A new readability yardstick"
    bounds = (None, 121.22)

    def signature(self) -> str:
        return "formula:flesch-reading-ease|syllables:rules"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [reading_ease(text) for text in texts]
