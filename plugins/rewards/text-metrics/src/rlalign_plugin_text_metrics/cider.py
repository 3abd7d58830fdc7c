"""CIDEr-D: n-grams shared with references, weighed by how rare they are (Vedantam et al., 2015)."""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

from pydantic import Field

from rlalign import ConfigError, Example, Options, Rollout, Run, hookimpl
from rlalign_plugin_text_metrics.metric import TextMetric, references, signed
from rlalign_plugin_text_metrics.tokens import penn

ORDER = 4
SIGMA = 6.0
REMEMBERED = 2**10
Ngram = tuple[str, ...]
Tokens = Literal["penn", "coco"]
DROPPED = frozenset([*string.punctuation, "``", "''", "...", "--"])


@lru_cache(REMEMBERED)
def ngrams(text: str, tokens: Tokens) -> Mapping[Ngram, int]:
    """How often a text has each n-gram of up to four words."""
    words = penn(text)
    if tokens == "coco":
        words = tuple(word.lower() for word in words if word not in DROPPED)
    return Counter(words[i : i + n] for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


class Vector(NamedTuple):
    """A text's n-grams, each weighed; the vector's length for each n; how many word pairs the text has."""

    weights: Mapping[Ngram, float]
    norms: tuple[float, ...]
    pairs: int


class Frequencies:
    """In how many sets of references each n-gram occurs, and what follows for its weight. It never changes."""

    def __init__(self, sets: Iterable[Sequence[str]], tokens: Tokens) -> None:
        counted: Counter[Ngram] = Counter()
        self.sets = 0
        for texts in sets:
            self.sets += 1
            counted.update(set().union(*(ngrams(text, tokens) for text in texts)))
        self._common = {gram: count for gram, count in counted.items() if count > 1}  # 0 and 1 weigh the same
        self._tokens: Tokens = tokens
        self.vector = lru_cache(REMEMBERED)(self._vector)

    def _vector(self, text: str) -> Vector:
        counts = ngrams(text, self._tokens)
        most = math.log(self.sets)
        weights = {g: count * (most - math.log(self._common.get(g, 1))) for g, count in counts.items()}
        squares = [0.0] * ORDER
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight**2
        pairs = sum(count for gram, count in counts.items() if len(gram) == 2)
        return Vector(weights, tuple(map(math.sqrt, squares)), pairs)


def cider_d(text: str, targets: Sequence[str], frequencies: Frequencies) -> float:
    """Ten times the mean, over n and over references, of the clipped cosine, less where lengths differ.

    As in the COCO tool, the length is the number of word pairs.
    """
    ours = frequencies.vector(text)
    return min(10.0, 10 * fmean(_likeness(ours, frequencies.vector(each)) for each in targets))


def _likeness(ours: Vector, theirs: Vector) -> float:
    shared = [0.0] * ORDER
    for gram, weight in ours.weights.items():
        other = theirs.weights.get(gram)
        if other is not None:
            shared[len(gram) - 1] += min(weight, other) * other
    longer = math.exp(-((ours.pairs - theirs.pairs) ** 2) / (2 * SIGMA**2))
    cosines = [
        s / (a * b) if a and b else 0.0 for s, a, b in zip(shared, ours.norms, theirs.norms, strict=True)
    ]
    return fmean(cosines) * longer


class Cider(TextMetric):
    """Word sequences that a response shares with its references, the rarer the more they count: CIDEr-D, 0 to 10.

    How rare one is, is counted once in the references of a split, and stays: a response's score never depends on what
    else was sampled. Under `evaluate.use`, `corpus` is the mean with counts of the evaluated references, as in the COCO
    tool.
    """

    class Config(Options):
        """Options of `cider`."""

        split: str = Field("train", description="the task's split in whose references n-grams are counted")
        examples: int = Field(
            20_000,
            gt=1,
            description="how many of its first examples are counted; n-grams of more need gigabytes",
        )
        file: Path | None = Field(
            None,
            description="count in this file instead: a line of JSON an example, a list of references or an object "
            "with `references`",
        )
        tokens: Tokens = Field(
            "penn",
            description="words and punctuation as written, as RL4LMs has them; or lower-case words, the COCO tool's",
        )

    config: Config
    bounds = (0.0, 10.0)
    paper = "Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, 2015"
    frequencies: Frequencies

    def signature(self) -> str:
        c = self.config
        counted = c.file.name if c.file is not None else f"{c.split}-{c.examples}"
        shown = {
            "nrefs": "var",
            "case": "mixed" if c.tokens == "penn" else "lc",
            "tok": c.tokens,
            "idf": counted,
        }
        return signed(**shown, n=ORDER, sigma=SIGMA, version=version("rlalign-plugin-text-metrics"))

    def setup(self, run: Run) -> None:
        c = self.config
        if c.file is not None:
            sets, where = [*_read(c.file)], str(c.file)
        else:
            found, where = run.task.examples(c.split), f"the task's split `{c.split}`"
            if len(found) > c.examples:
                run.note(
                    f"`{self.name}` counts n-grams in the first {c.examples:,} of {len(found):,} examples of {where}"
                )
            sets = [each.references for each in islice(found, c.examples) if each.references]
        self.frequencies = Frequencies(sets, c.tokens)
        if self.frequencies.sets < 2:
            raise ConfigError(
                f"`{self.name}` weighs n-grams by how many examples have them in their references, and {where} has "
                f"{self.frequencies.sets} with any; `split` or `file` names references of at least 2"
            )

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return _scores(texts, [references(e, self.name) for e in examples], self.frequencies)

    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        sets = {id(e): references(e, self.name) for e in rollout.answered}
        if len(sets) < 2:
            return {}
        answered = [sets[id(e)] for e in rollout.answered]
        return {
            "corpus": fmean(_scores(rollout.texts, answered, Frequencies(sets.values(), self.config.tokens)))
        }


def _scores(texts: Sequence[str], targets: Sequence[Sequence[str]], frequencies: Frequencies) -> list[float]:
    return [cider_d(text, each, frequencies) for text, each in zip(texts, targets, strict=True)]


def _read(path: Path) -> Iterable[Sequence[str]]:
    """The references of each line of a file."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                said = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number} is no JSON: {error}") from error
            found = said.get("references") if isinstance(said, dict) else said
            if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
                raise ConfigError(
                    f"{path}, line {number}: a list of references, or an object with `references`, is expected"
                )
            yield found
