"""What the metrics of single responses share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from rlalign import Component, ComponentError, Example, Rollout, Score, hookimpl


class TextMetric(Component):
    """A number for each response: a function of its text and of the example it answers."""

    @abstractmethod
    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        """One number a response; `examples[i]` is what `texts[i]` answers."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor(self.values(rollout.texts, rollout.answered), dtype=torch.float64))


class CorpusMetric(TextMetric):
    """A number for each response, and one for all of an evaluation together that is not their mean."""

    @abstractmethod
    def corpus(self, texts: Sequence[str], examples: Sequence[Example]) -> float:
        """One number for all responses; `examples[i]` is what `texts[i]` answers."""

    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        return {"corpus": self.corpus(rollout.texts, rollout.answered)} if rollout.texts else {}


def references(example: Example, asked_by: str) -> tuple[str, ...]:
    """The example's references, of which there must be some."""
    if not example.references:
        raise ComponentError(f"`{asked_by}` compares with references, and {example.without_references}")
    return example.references


def signed(**said: object) -> str:
    """A signature as sacreBLEU prints it: `key:value` joined by `|`."""
    shown = {True: "yes", False: "no"}
    return "|".join(f"{k}:{shown[v] if isinstance(v, bool) else v}" for k, v in said.items())
