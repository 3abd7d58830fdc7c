"""TER: edits and moves that would make a response a reference (Snover et al., 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version

from pydantic import Field
from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer

from rlalign import Example, Options
from rlalign_plugin_text_metrics.edits import edits
from rlalign_plugin_text_metrics.metric import CorpusMetric, references, signed
from rlalign_plugin_text_metrics.tokens import CACHED

_PLAIN, _NORMALIZED = TercomTokenizer(), TercomTokenizer(normalized=True)


@lru_cache(CACHED)
def words(text: str, normalized: bool) -> tuple[str, ...]:
    """A text's words as Tercom takes them, lower-case."""
    return tuple((_NORMALIZED if normalized else _PLAIN)(text.rstrip()).split())


def fewest(text: str, targets: Sequence[str], normalized: bool) -> tuple[int, float]:
    """The edits to the nearest reference, and the mean length of all."""
    ours, theirs = words(text, normalized), [words(each, normalized) for each in targets]
    return min(edits(ours, each) for each in theirs), sum(map(len, theirs)) / len(theirs)


def share_right(counted: Sequence[tuple[int, float]]) -> float:
    """1 − TER of all texts whose edits and lengths these are."""
    made, length = (sum(column) for column in zip(*counted, strict=True))
    return 1 - (made / length if length else float(made > 0))


class Ter(CorpusMetric):
    """What need not be edited in a response to make it a reference: 1 − TER, at most 1, and below 0 if it is too long.

    An empty response scores 0 whatever the references are. Under `evaluate.use` it also gives 1 − TER of all responses
    together.
    """

    class Config(Options):
        """Options of `ter`."""

        clip: bool = Field(
            False, description="nothing below 0: so a long response cannot outweigh many; RL4LMs does not"
        )
        normalized: bool = Field(False, description="separate punctuation from words; sacreBLEU does not")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bounds = (0.0 if config.clip else None, 1.0)

    paper = "Snover et al., A Study of Translation Edit Rate with Targeted Human Annotation, 2006"

    def signature(self) -> str:
        shown = {
            "nrefs": "var",
            "case": "lc",
            "tok": "tercom",
            "norm": self.config.normalized,
            "clip": self.config.clip,
        }
        return signed(**shown, punct="yes", asian="no", version=version("sacrebleu"))

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        found = [
            share_right([each]) if text.strip() else 0.0 for text, each in self._counted(texts, examples)
        ]
        return [max(0.0, value) for value in found] if self.config.clip else found

    def corpus(self, texts: Sequence[str], examples: Sequence[Example]) -> float:
        return share_right([each for _, each in self._counted(texts, examples)])

    def _counted(
        self, texts: Sequence[str], examples: Sequence[Example]
    ) -> list[tuple[str, tuple[int, float]]]:
        return [
            (text, fewest(text, references(example, self.name), self.config.normalized))
            for text, example in zip(texts, examples, strict=True)
        ]
