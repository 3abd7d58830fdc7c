"""A reward for rlalign: how near a response is to a wanted number of words."""

from __future__ import annotations

import torch
from pydantic import Field
from rlalign import Component, Options, Rollout, Score, hookimpl

__all__ = ["ExampleName", "nearness"]


def nearness(text: str, words: int) -> float:
    """1 for a text of exactly so many words, less by 1/words for each missing or further one, at least 0."""
    return max(0.0, 1.0 - abs(len(text.split()) - words) / words)


class ExampleName(Component):
    """How near a response's number of words is to the wanted one."""

    # What the YAML may say, as a pydantic model: types and bounds are checked before anything runs, and
    # `rlalign plugins example-name` prints the descriptions. An option without a default must be given.
    class Config(Options):
        """Options of `example-name`."""

        words: int = Field(5, gt=0, description="the wanted number of words")

    config: Config

    # What others may rely on: the least and the largest value. None in place of a number: no bound.
    # Where a smaller value is the better response, also say `higher_is_better = False`.
    bounds = (0.0, 1.0)

    def signature(self) -> str:
        """What a value depends on beside the text; it is written beside every figure."""
        return f"words:{self.config.words}"

    # A hook is a method with this mark. It names the arguments it wants; docs/hooks.md lists them all.
    # A rollout holds N responses. `rollout.texts` are their texts, `rollout.answered` the N examples they answer
    # (`example.references`, `example.meta`). The score is one number a response, [N], in the same order.
    # To load a model, write `def setup(self, run: Run) -> None`: `__init__` stays cheap.
    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([nearness(text, self.config.words) for text in rollout.texts]))
