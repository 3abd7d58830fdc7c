"""ROUGE: n-grams and common subsequences shared with references (Lin, 2004). Values are rouge_score's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from statistics import fmean
from types import SimpleNamespace
from typing import Literal

from pydantic import Field
from rouge_score import tokenize

from rlalign import Example, Options, Rollout, hookimpl
from rlalign_plugin_text_metrics.metric import TextMetric, references, signed
from rlalign_plugin_text_metrics.tokens import CACHED, stem, words_of_any_language

Tokens = Literal["ascii", "unicode"]
Words = tuple[str, ...]
TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_PORTER = SimpleNamespace(stem=stem)


@lru_cache(CACHED)
def words(text: str, stemmer: bool, tokens: Tokens) -> Words:
    """A text's words; only those of four letters and more are stemmed."""
    if tokens == "ascii":
        return tuple(tokenize.tokenize(text, _PORTER if stemmer else None))
    found = words_of_any_language(text)
    return tuple(stem(word) if len(word) > 3 else word for word in found) if stemmer else found


@lru_cache(CACHED)
def lines(text: str, stemmer: bool, tokens: Tokens) -> tuple[Words, ...]:
    """The words of each line that is not empty."""
    return tuple(words(line, stemmer, tokens) for line in text.split("\n") if line)


@lru_cache(2**10)
def _ngrams(found: Words, n: int) -> Counter[Words]:
    return Counter(found[i : i + n] for i in range(len(found) - n + 1))


def rouge_n(text: Words, reference: Words, n: int) -> float:
    """F of the n-grams that a text shares with a reference."""
    ours, theirs = _ngrams(text, n), _ngrams(reference, n)
    shared = sum(min(count, theirs[gram]) for gram, count in ours.items() if gram in theirs)
    return f_measure(shared, ours.total(), theirs.total())


def rouge_l(text: Words, reference: Words) -> float:
    """F of the longest common subsequence."""
    return f_measure(common_length(text, reference), len(text), len(reference))


def rouge_lsum(text: Sequence[Words], reference: Sequence[Words]) -> float:
    """F of the union of longest common subsequences, line by line of the reference (Lin, 2004, section 3.2).

    As in ROUGE 1.5.5, a word counts no more often than each side has it.
    """
    left = Counter(word for line in text for word in line)
    asked = Counter(word for line in reference for word in line)
    sizes = left.total(), asked.total()
    shared = 0
    for line in reference:
        for place in sorted(set().union(*(common_places(line, other) for other in text))):
            word = line[place]
            if left[word] > 0 and asked[word] > 0:
                shared += 1
                left[word] -= 1
                asked[word] -= 1
    return f_measure(shared, *sizes)


def f_measure(shared: int, ours: int, theirs: int) -> float:
    """2PR / (P + R) of what is shared among what either side has; 0 where a side has nothing."""
    precision, recall = shared / max(ours, 1), shared / max(theirs, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def common_length(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    return len(other) - _rows(one, other)[-1].bit_count()


def common_places(line: Words, other: Words) -> set[int]:
    """Where in `line` the words of a longest common subsequence stand: of several the one that rouge_score finds."""
    rows = _rows(line, other)

    def length(i: int, j: int) -> int:
        return j - (rows[i] & ((1 << j) - 1)).bit_count()

    i, j, found = len(line), len(other), set()
    while i and j:
        if line[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            found.add(i)
        elif length(i, j - 1) > length(i - 1, j):
            j -= 1
        else:
            i -= 1
    return found


def _rows(one: Words, other: Words) -> list[int]:
    """The table of common lengths: for each beginning of `one` a row of bits, 0 where it grows (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for j, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << j
    whole = (1 << len(other)) - 1
    rows = [whole]
    for word in one:
        row = rows[-1]
        hit = row & places.get(word, 0)
        rows.append(((row + hit) | (row - hit)) & whole)
    return rows


class Rouge(TextMetric):
    """The words, word pairs or common subsequence that a response shares with its references: ROUGE's F, 0 to 1.

    Under `evaluate.use` it also gives the means of all four types.
    """

    class Config(Options):
        """Options of `rouge`."""

        type: Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "mean"] = Field(
            "mean",
            description="`rouge1`, words; `rouge2`, pairs; `rougeL`, the common subsequence; `rougeLsum`, the same "
            "line by line; or `mean`, of the first three: RL4LMs' `rouge_combined`",
        )
        stemmer: bool = Field(
            True, description="compare stems of English words; RL4LMs does, rouge_score does not"
        )
        tokens: Tokens = Field(
            "ascii",
            description="what words are made of: `ascii`, a to z and digits, as in rouge_score; `unicode`, letters "
            "of any language",
        )
        references: Literal["best", "mean"] = Field(
            "best", description="of several references the best one counts, as in rouge_score, or their mean"
        )

    config: Config
    bounds = (0.0, 1.0)
    paper = "Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004"

    def signature(self) -> str:
        c = self.config
        shown = {"nrefs": "var", "refs": c.references, "type": c.type, "stem": c.stemmer, "tok": c.tokens}
        return signed(**shown, version=version("rouge-score"))

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        types = TYPES[:3] if self.config.type == "mean" else (self.config.type,)
        found = [self._each(kind, texts, examples) for kind in types]
        return [fmean(row) for row in zip(*found, strict=True)]

    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        found = {kind: self._each(kind, rollout.texts, rollout.answered) for kind in TYPES}
        return {kind: fmean(values) for kind, values in found.items() if values}

    def _each(self, kind: str, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        over = max if self.config.references == "best" else fmean
        return [
            over([self._pair(kind, text, reference) for reference in references(example, self.name)])
            for text, example in zip(texts, examples, strict=True)
        ]

    def _pair(self, kind: str, text: str, reference: str) -> float:
        how = self.config.stemmer, self.config.tokens
        if kind == "rougeLsum":
            return rouge_lsum(lines(text, *how), lines(reference, *how))
        ours, theirs = words(text, *how), words(reference, *how)
        return rouge_l(ours, theirs) if kind == "rougeL" else rouge_n(ours, theirs, int(kind[-1]))


class RougeLMax(TextMetric):
    """The longest common subsequence with the nearest reference, in the first words: NarrativeQA's ROUGE-L, 0 to 1."""

    class Config(Options):
        """Options of `rouge-l-max`."""

        words: int = Field(100, gt=0, description="how many words of each text count; RL4LMs' is 100")

    config: Config
    bounds = (0.0, 1.0)
    paper = "Kočiský et al., The NarrativeQA Reading Comprehension Challenge, 2018"

    def signature(self) -> str:
        shown = {"nrefs": "var", "refs": "best", "type": "rougeL", "stem": True, "tok": "ascii"}
        return signed(**shown, words=self.config.words, version=version("rouge-score"))

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [
            max(rouge_l(self._words(text), self._words(each)) for each in references(example, self.name))
            for text, example in zip(texts, examples, strict=True)
        ]

    def _words(self, text: str) -> Words:
        return words(" ".join(text.split()[: self.config.words]), True, "ascii")
