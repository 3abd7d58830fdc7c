"""Exact fluency: whether a text belongs to the language its example was made in."""

from __future__ import annotations

import torch

from rlalign import Component, ComponentError, Rollout, Score, hookimpl
from rlalign_plugin_toy_tasks.dialogue import REPLIES
from rlalign_plugin_toy_tasks.keywords import KEYWORDS
from rlalign_plugin_toy_tasks.questions import ANSWERS
from rlalign_plugin_toy_tasks.reviews import REVIEWS
from rlalign_plugin_toy_tasks.summaries import SUMMARIES
from rlalign_plugin_toy_tasks.texts import whole_texts
from rlalign_plugin_toy_tasks.translation import TRANSLATIONS

LANGUAGES = {
    "toy-reviews": REVIEWS,
    "toy-keywords": KEYWORDS,
    "toy-summaries": SUMMARIES,
    "toy-questions": ANSWERS,
    "toy-translation": TRANSLATIONS,
    "toy-dialogue": REPLIES,
}
"""What responses are written in; in `toy-reviews`, prompt and response together."""


class ToyGrammar(Component):
    """1 for a grammatical text, 0 for any other; decided by a regular expression made from the grammar."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        wholes = whole_texts(rollout)
        return Score(torch.tensor([self._value(rollout, i, whole) for i, whole in enumerate(wholes)]))

    def _value(self, rollout: Rollout, row: int, whole: str) -> float:
        example = rollout.examples[int(rollout.group_N[row])]
        name = example.meta.get("language")
        if name not in LANGUAGES:
            raise ComponentError(
                f"example `{example.id}` has no language that `{self.name}` knows (meta: language: {name!r}); it "
                f"goes with {', '.join(f'`task: {known}`' for known in LANGUAGES)}"
            )
        return float(LANGUAGES[name].accepts(whole if name == "toy-reviews" else rollout.texts[row]))
