"""Exact fluency: whether a text belongs to the language its example was made in."""

from __future__ import annotations

import torch

from rlalign import Component, ComponentError, Rollout, Score, hookimpl
from rlalign_plugin_toy_tasks.keywords import KEYWORDS
from rlalign_plugin_toy_tasks.reviews import REVIEWS
from rlalign_plugin_toy_tasks.texts import whole_texts


class ToyGrammar(Component):
    """1 for a grammatical text, 0 for any other; decided by a regular expression made from the grammar."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        wholes = whole_texts(rollout)
        return Score(torch.tensor([self._value(rollout, i, whole) for i, whole in enumerate(wholes)]))

    def _value(self, rollout: Rollout, row: int, whole: str) -> float:
        example = rollout.examples[int(rollout.group_N[row])]
        match example.meta.get("language"):
            case "toy-reviews":
                return float(REVIEWS.accepts(whole))
            case "toy-keywords":
                return float(KEYWORDS.accepts(rollout.texts[row]))
            case other:
                raise ComponentError(
                    f"example `{example.id}` has no language that `toy-grammar` knows (meta: language: "
                    f"{other!r}); it goes with `task: toy-reviews` and `task: toy-keywords`"
                )
