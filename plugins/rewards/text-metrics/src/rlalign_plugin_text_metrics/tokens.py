"""Texts as words: the tokenisers that several metrics share. Each is a pure function with a bounded cache."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

CACHED = 2**13
"""Texts of which each cache remembers the words."""
CLOSING = r"\])}>\"'»”’"
"""What may stand between a full stop and the end of its sentence."""
ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """adm apr aug capt co col corp dec dr e.g etc feb gen gov hon i.e inc jan jr lt ltd messrs mr mrs ms mt nov oct
        prof rep rev sen sep sept sgt sr st vs""",
    )
)
"""What ends in a full stop within a sentence, before a capital letter too; beside initials."""
STOP = re.compile(rf"(?<=[^.\s])\.(?=[{CLOSING}]*(?:\s*\Z|(\s*\n|\s+)[\"“‘«'(\[]*(\S)))")
"""A full stop at the end of a word; what stands between it and the next word, and the first letter of that."""
ALONE = r";@#$%&?!*\[\](){}<>«“‘„»”’\"\u2012-\u2015"
"""Characters that are a word each."""
INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
"""What stands before the last stop of `J.` and `U.S.`"""
WORD = re.compile(
    rf"\.{{2,}}|--|[{ALONE}]|`+|''|[:,](?!\d)|(?<=\s)\.(?![\w.])"
    rf"|(?:[^\s{ALONE}`:,.'-]|[:,](?=\d)|(?<!\.)\.(?!\.)|-(?!-)|'(?!'))+"
)
ENDING = re.compile(r"(?<=[^'])(?:'(?:[smd]|ll|re|ve|)|(?<=[^'])n't)\Z", re.IGNORECASE)
"""What is a word of its own at the end of another one: the genitive, and short forms of verbs."""
QUOTING = re.compile(r"'(?=\w)(?!(?:re|ve|ll|[mtsdn])\b)", re.IGNORECASE)
"""An apostrophe that opens a quotation."""
TWO_WORDS = {
    "cannot": 3,
    "d'ye": 1,
    "gimme": 3,
    "gonna": 3,
    "gotta": 3,
    "lemme": 3,
    "more'n": 4,
    "wanna": 3,
    "'tis": 2,
    "'twas": 2,
}
"""Words that are two, and where the second begins."""


@lru_cache(CACHED)
def penn(text: str) -> tuple[str, ...]:
    """Words and punctuation in the manner of the Penn Treebank, case kept: `can't` is `ca n't`, quotes are `` and ''.

    A sentence gives what NLTK's `word_tokenize` gives. Where one of several sentences ends is decided by the next
    capital letter and a short list of abbreviations, so that no trained model is needed.
    """
    text = STOP.sub(_full_stop, text)
    words: list[str] = []
    for found in WORD.finditer(text):
        word = found[0]
        if word in ('"', "''"):
            words.append("``" if _opens(text, found.start()) else "''")
        elif "'" in word or word.lower() in TWO_WORDS:
            words.extend(_parts(word))
        else:
            words.append(word)
    return tuple(words)


def _full_stop(found: re.Match[str]) -> str:
    """The full stop, apart from its word where it ends a sentence."""
    between, following = found[1], found[2]
    if following is not None and "\n" not in between:
        before = found.string[max(0, found.start() - 8) : found.start()].split()[-1].lstrip("\"'“‘(")
        if INITIALS.fullmatch(before) or before.lower() in ABBREVIATIONS or not following.isupper():
            return "."
    return " ."


def _opens(text: str, start: int) -> bool:
    """Whether a quotation mark opens a quotation: nothing, a space or a bracket stands before it."""
    return start == 0 or text[start - 1].isspace() or text[start - 1] in "([{<"


def _parts(word: str) -> list[str]:
    """A word with an apostrophe, or of two, as its words."""
    if word.lower() in TWO_WORDS:
        cut = TWO_WORDS[word.lower()]
        return [word[:cut], word[cut:]]
    opening: list[str] = []
    if QUOTING.match(word):
        opening, word = ["'"], word[1:]
    ending = ENDING.search(word)
    if ending is None or ending.start() == 0:
        return [*opening, word]
    return [*opening, word[: ending.start()], ending[0]]


class _Characters(dict[int, str]):
    """For `str.translate`: what each character is to `words_of_any_language`, found when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character)[0] not in "LMN":
            shown = " "
        elif _has_no_spaces(code):
            shown = f" {character} "
        else:
            shown = character
        self[code] = shown
        return shown


_CHARACTERS = _Characters()


def _has_no_spaces(code: int) -> bool:
    """Whether a character's script writes words without spaces: Chinese, Japanese, Thai, Lao, Burmese, Khmer."""
    return (
        0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
        or 0x2E80 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0xFF66 <= code <= 0xFF9F
        or 0x20000 <= code <= 0x3FFFF
    )


@lru_cache(CACHED)
def words_of_any_language(text: str) -> tuple[str, ...]:
    """Lower-case runs of letters, marks and digits; of scripts without spaces, each character."""
    return tuple(unicodedata.normalize("NFC", text).lower().translate(_CHARACTERS).split())


@lru_cache(CACHED)
def split(text: str) -> tuple[str, ...]:
    """What stands between spaces."""
    return tuple(text.split())


@lru_cache(2**16)
def stem(word: str) -> str:
    """The stem of an English word, lower-case: Porter's, with NLTK's extensions."""
    return str(_porter().stem(word))


@lru_cache(1)
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer  # NLTK takes a second to import

    return PorterStemmer()
