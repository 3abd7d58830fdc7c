"""BERT's WordPiece as google's code for BLEURT has it, exactly: text to numbers of pieces.

Nothing in a text is special: "[SEP]" is three marks of punctuation and a word to it, whoever wrote it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache

LONGEST_WORD = 200
"""Characters of a word; one that is longer is unknown."""
WORDS = 2**15
"""Words that are remembered with their pieces."""
CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
"""Blocks of ideographs, each of which is a word."""


class WordPiece:
    """Greedy longest pieces of words; lower-cased, without accents if the model was trained so."""

    def __init__(self, vocabulary: Mapping[str, int], lower: bool) -> None:
        self.vocabulary = vocabulary
        self.lower = lower
        self.unknown = vocabulary["[UNK]"]
        self._longest = max(map(len, vocabulary))
        self._clean = _Clean()
        self._remembered = lru_cache(WORDS)(lambda word: tuple(self._of_chunk(word)))

    def pieces(self, text: str) -> Iterator[int]:
        """The numbers of a text's pieces, one after the other: who needs the first ones only pays for no others."""
        for chunk in text.translate(self._clean).split():
            yield from self._remembered(chunk) if len(chunk) <= LONGEST_WORD else self._of_chunk(chunk)

    def _of_chunk(self, chunk: str) -> Iterator[int]:
        """Of what stands between two blanks."""
        if self.lower:
            decomposed = unicodedata.normalize("NFD", chunk.lower())
            chunk = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        for word in _apart(chunk):
            yield from self._of_word(word)

    def _of_word(self, word: str) -> list[int]:
        if len(word) > LONGEST_WORD:
            return [self.unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                number = self.vocabulary.get(prefix + word[start:end])
                if number is not None:
                    break
            else:
                return [self.unknown]
            found.append(number)
            start = end
        return found


class _Clean(dict[int, str | None]):
    """What becomes of each character: dropped, a blank, set apart by blanks, or kept."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        kind = unicodedata.category(char)
        found: str | None = char
        if char in "\t\n\r" or kind == "Zs":
            found = " "
        elif code in (0, 0xFFFD) or kind in ("Cc", "Cf"):
            found = None
        elif any(low <= code <= high for low, high in CJK):
            found = f" {char} "
        if code < 0x10000:  # so that it stays small
            self[code] = found
        return found


def _apart(chunk: str) -> Iterator[str]:
    """Words, and each mark of punctuation alone."""
    start = 0
    for at, char in enumerate(chunk):
        if _is_punctuation(char):
            yield from chunk[start:at].split()
            yield char
            start = at + 1
    yield from chunk[start:].split()


@lru_cache(2**12)
def _is_punctuation(char: str) -> bool:
    """Also what is a symbol to Unicode and a key on a keyboard: `$`, `+`, `<`."""
    if "!" <= char <= "~":
        return not char.isalnum()
    return unicodedata.category(char).startswith("P")
