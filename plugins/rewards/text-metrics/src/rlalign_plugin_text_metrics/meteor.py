"""METEOR: words aligned with a reference's, exactly, by stem or by synonym (Lavie and Agarwal, 2007), as in NLTK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, computed_field, model_validator

from rlalign import ConfigError, Example, Options, Run
from rlalign_plugin_text_metrics import wordnet
from rlalign_plugin_text_metrics.metric import TextMetric, references, signed
from rlalign_plugin_text_metrics.tokens import stem
from rlalign_plugin_text_metrics.words import treebank

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5
Synonyms = Callable[[str], frozenset[str]]
Words = Sequence[str]


def meteor(text: Words, reference: Words, synonyms: Synonyms | None) -> float:
    """METEOR of words with a reference's; without `synonyms`, words match exactly or by stem only."""
    pairs = align(text, reference, synonyms)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(text), len(pairs) / len(reference)
    mean = (precision * recall) / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 1 + sum((i + 1, j + 1) != then for (i, j), then in pairwise(pairs))
    penalty: float = GAMMA * (chunks / len(pairs)) ** BETA
    return (1 - penalty) * mean


def align(text: Words, reference: Words, synonyms: Synonyms | None) -> list[tuple[int, int]]:
    """Pairs of places with one meaning, each place once, in the order of the text.

    As NLTK does it: three rounds, each from the last word to the first, each with the last free place of the reference.
    Synonyms are looked for of the stems that the second round left.
    """
    pairs: list[tuple[int, int]] = []
    left, free = list(enumerate(text)), list(enumerate(reference))
    left, free = _same(left, free, pairs)
    if left and free:
        left, free = ([(i, stem(word)) for i, word in side] for side in (left, free))
        left, free = _same(left, free, pairs)
    if synonyms is not None and free:
        spelled = {word for _, word in free}
        for i, word in reversed(left):
            meant = synonyms(word)
            if meant.isdisjoint(spelled):
                continue
            for k in range(len(free) - 1, -1, -1):
                if free[k][1] in meant:
                    pairs.append((i, free.pop(k)[0]))
                    break
    return sorted(pairs)


def _same(
    left: list[tuple[int, str]], free: list[tuple[int, str]], pairs: list[tuple[int, int]]
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Pairs of one spelling, added to `pairs`; what is left of either side."""
    places: dict[str, list[int]] = {}
    for j, word in free:
        places.setdefault(word, []).append(j)
    rest = []
    for i, word in reversed(left):
        if there := places.get(word):
            pairs.append((i, there.pop()))
        else:
            rest.append((i, word))
    taken = {j for _, j in pairs}
    return rest[::-1], [each for each in free if each[0] not in taken]


class _Aligned(TextMetric):
    bounds = (0.0, 1.0)
    paper = "Lavie and Agarwal, METEOR: An Automatic Metric for MT Evaluation with High Levels of Correlation, 2007"
    synonyms: Synonyms | None = None

    def compared(self, example: Example) -> Sequence[str]:
        """The references, of which the best counts."""
        return references(example, self.name)

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [
            max(meteor(treebank(text), treebank(each), self.synonyms) for each in self.compared(example))
            for text, example in zip(texts, examples, strict=True)
        ]

    def _signed(self, synonyms: str, refs: str = "best") -> str:
        how = {"nrefs": "var", "refs": refs, "case": "lc", "tok": "penn", "stem": "porter", "syn": synonyms}
        weights = {"alpha": ALPHA, "beta": BETA, "gamma": GAMMA}
        return signed(**how, **weights, version=version("rlalign-plugin-text-metrics"))


class Meteor(_Aligned):
    """Words that a response shares with the nearest reference, by stem and synonym too, in its order: METEOR, 0 to 1.

    English only. Synonyms are WordNet's, without which the numbers are another metric's: `meteor-nosyn`.
    """

    class Config(Options):
        """Options of `meteor`."""

        wordnet: Path | None = Field(
            None,
            description="the folder of WordNet 3.0 (`index.noun`, `data.noun`, …); null: looked for in `$WNSEARCHDIR`, "
            "`$WNHOME/dict`, /usr/share/wordnet and NLTK's data",
        )
        compat: Literal["rl4lms"] | None = Field(
            None,
            description="`rl4lms`: all references, written out as a list, `['…', '…']`, are one: RL4LMs' mistake",
        )

        @model_validator(mode="after")
        def _there(self) -> Meteor.Config:
            if self.wordnet is not None and (lacks := wordnet.lacking(self.wordnet)):
                raise ValueError(f"{self.wordnet} is no folder of WordNet: it lacks {', '.join(lacks)}")
            if self.folder is None:
                looked = ", ".join(map(str, wordnet.places()))
                raise ValueError(
                    f"METEOR needs WordNet 3.0, and it is in none of {looked}. `apt-get install wordnet-base` brings "
                    "it, `wordnet: FOLDER` says where it is; `meteor-nosyn` does without, and scores lower"
                )
            return self

        @cached_property
        def folder(self) -> Path | None:
            """Where WordNet is."""
            known = [self.wordnet] if self.wordnet is not None else wordnet.places()
            return next((place for place in known if not wordnet.lacking(place)), None)

        @computed_field(description="a hash of WordNet's files: another WordNet is another metric")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return wordnet.digest(self.folder) if self.folder is not None else ""

    config: Config

    def setup(self, run: Run) -> None:
        folder = self.config.folder
        if folder is None or wordnet.digest(folder) != self.config.digest:
            raise ConfigError(
                f"{folder}: WordNet's files have changed since the run was prepared; start again"
            )
        self.synonyms = wordnet.opened(folder).synonyms

    def compared(self, example: Example) -> Sequence[str]:
        found = super().compared(example)
        return found if self.config.compat is None else [str(list(found))]

    def signature(self) -> str:
        assert self.config.folder is not None
        synonyms = f"wordnet-{wordnet.opened(self.config.folder).version}"
        return self._signed(synonyms, "best" if self.config.compat is None else "list")


class MeteorNosyn(_Aligned):
    """METEOR without synonyms, which needs no WordNet: words match exactly or by stem. Scores lower than METEOR."""

    def signature(self) -> str:
        return self._signed("no")
