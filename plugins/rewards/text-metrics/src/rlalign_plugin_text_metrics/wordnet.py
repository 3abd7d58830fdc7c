"""WordNet's files, read once into memory: which words share a meaning. No file stays open, so threads may share it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

KINDS = ("noun", "verb", "adj", "adv")
FILES = tuple(f"{part}.{kind}" for kind in KINDS for part in ("index", "data")) + tuple(
    f"{kind}.exc" for kind in KINDS
)
RULES = {
    "noun": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}
"""Endings of inflected forms, and what stands there in the base form (morphy(7WN))."""
ENDINGS = {kind: [tuple(rule.split(":")) for rule in rules.split()] for kind, rules in RULES.items()}


class WordNet:
    """Synonyms of English words."""

    def __init__(self, folder: Path) -> None:
        self._data = {kind: (folder / f"data.{kind}").read_bytes() for kind in KINDS}
        self._index = {kind: dict(_index(folder / f"index.{kind}")) for kind in KINDS}
        self._irregular = {kind: dict(_exceptions(folder / f"{kind}.exc")) for kind in KINDS}
        said = re.search(rb"WordNet (\d+(?:\.\d+)?) Copyright", self._data["adj"])
        self.version = said[1].decode() if said else "unknown"
        self.synonyms = lru_cache(2**16)(self._synonyms)

    def _synonyms(self, word: str) -> frozenset[str]:
        """The word, and all single words that share a meaning with it or with a base form of it."""
        found = {word}
        for kind in KINDS:
            index = self._index[kind]
            for base in self._bases(word.lower(), kind):
                for start in index.get(base, ()):
                    found.update(_words_at(self._data[kind], start))
        return frozenset(found)

    def _bases(self, word: str, kind: str) -> set[str]:
        """The word, and what it may be a form of."""
        regular = [word.removesuffix(old) + new for old, new in ENDINGS[kind] if word.endswith(old)]
        return {word, *self._irregular[kind].get(word, regular)}


def _index(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each word of an index, and where its meanings begin in the data."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith(" "):
                fields = line.split()
                yield fields[0], tuple(map(int, fields[-int(fields[2]) :]))


def _exceptions(path: Path) -> Iterator[tuple[str, list[str]]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            form, *bases = line.split()
            yield form, bases


def _words_at(data: bytes, start: int) -> Iterator[str]:
    """The single words of the meaning whose line begins there; an adjective may carry its place as `(p)`."""
    fields = data[start : data.index(b"|", start)].decode("utf-8").split()
    for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
        if "_" not in word:
            yield re.sub(r"\([^()]*\)$", "", word)


@lru_cache(2)
def opened(folder: Path) -> WordNet:
    """The WordNet of a folder, read once by this process."""
    return WordNet(folder)


def places() -> list[Path]:
    """Where WordNet may lie: as `WNSEARCHDIR` and `WNHOME` say, as Debian installs it, as NLTK downloads it."""
    found = [Path(os.environ["WNSEARCHDIR"])] if os.environ.get("WNSEARCHDIR") else []
    if os.environ.get("WNHOME"):
        found.append(Path(os.environ["WNHOME"]) / "dict")
    found.append(Path("/usr/share/wordnet"))
    roots = [Path(p) for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    roots += [Path.home() / "nltk_data", Path(sys.prefix) / "nltk_data", Path("/usr/share/nltk_data")]
    return found + [root / "corpora" / "wordnet" for root in roots]


def lacking(folder: Path) -> list[str]:
    """Which of WordNet's files a folder lacks."""
    return [name for name in FILES if not (folder / name).is_file()]


def digest(folder: Path) -> str:
    """A hash of the files' contents."""
    found = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]
