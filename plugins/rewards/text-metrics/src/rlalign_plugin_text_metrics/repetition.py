"""How much a response repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from rlalign import Example, Options
from rlalign_plugin_text_metrics.metric import TextMetric
from rlalign_plugin_text_metrics.words import ngrams


def repetition(text: str, order: int) -> float:
    """The share of the n-grams that came before; 0 of a text too short to have one."""
    found = list(ngrams(text.lower().split(), order))
    return 1 - len(set(found)) / len(found) if found else 0.0


class Repetition(TextMetric):
    """The share of a response's n-grams that it has said before (`seq-rep-n`): lower is better."""

    paper = "Welleck et al. 2020, Neural text generation with unlikelihood training"
    higher_is_better = False
    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `repetition`."""

        order: int = Field(4, ge=1, le=100, description="n, in words parted by white space; the paper's")

    config: Config

    def signature(self) -> str:
        return f"case:lc|tok:space|n:{self.config.order}"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [repetition(text, self.config.order) for text in texts]
