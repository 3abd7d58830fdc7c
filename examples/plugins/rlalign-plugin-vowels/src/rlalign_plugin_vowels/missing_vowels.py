"""A task: give a word its vowels back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from rlalign import ConfigError, Example, Options, Task

WORDS = Path(__file__).parent / "words.txt"


def without_vowels(word: str) -> str:
    """What is left of a word."""
    return "".join(c for c in word if c not in "aeiou")


def share(text: str) -> float:
    """A number in [0, 1) that follows from the text alone: `hash` differs from process to process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


class MissingVowels(Task):
    """The prompt is a word without its vowels, the answer the word."""

    class Config(Options):
        """Options of `missing-vowels`."""

        words: Path | None = Field(
            None, strict=False, description="a file of words, one a line; null: 44 of our own"
        )
        held_out: float = Field(0.25, gt=0, lt=1, description="about which share of them makes up `val`")

    config: Config
    generation = {"greedy": True, "max_new_tokens": 12}

    def examples(self, split: str) -> Sequence[Example]:
        if split not in ("train", "val"):
            raise ConfigError(f"missing-vowels: there is no split `{split}` (splits: train, val)")
        words = dict.fromkeys(self._text().split())  # each once, in the file's order
        return [self._example(word) for word in words if self._split_of(word) == split]

    def _text(self) -> str:
        return (self.config.words or WORDS).read_text(encoding="utf-8")

    def _split_of(self, word: str) -> str:
        """By the prompt: words that give the same one are in the same split."""
        return "val" if share(without_vowels(word)) < self.config.held_out else "train"

    def _example(self, word: str) -> Example:
        prompt = without_vowels(word)
        return Example(
            id=word,
            prompt=f"{prompt} -> ",
            responses=(word, prompt),
            scores=(1.0, 0.0),
            meta={"references": [word]},
        )

    def postprocess(self, text: str) -> str:
        return text.partition("\n")[0].strip()

    def fingerprint(self, split: str) -> str:
        said = f"{split} {self.config.held_out} {self._text()}"
        return hashlib.sha256(said.encode()).hexdigest()
