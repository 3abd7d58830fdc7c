"""Write increasing numbers: RL4LMs' first synthetic task."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from pydantic import Field

from rlalign import Component, Example, Options, Rollout, Score, Task, hookimpl


class ToyNumbers(Task):
    """Write increasing numbers. RL4LMs' synthetic task: every prompt is the same, and there are no references."""

    paper = (
        "Rajkumar Ramamurthy et al., Is reinforcement learning (not) for natural language processing: benchmarks, "
        "baselines, and building blocks for natural language policy optimization, 2023"
    )

    class Config(Options):
        """Options of `toy-numbers`."""

        prompt: str = Field("", description="the prompt of every example")
        size: int = Field(50, gt=0, le=1_000_000, description="examples in each split")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(id=f"{split}-{i}", prompt=self.config.prompt) for i in range(self.config.size)]


class IncreasingNumbers(Component):
    """The share of a text that is a strictly increasing run of numbers from its first number on."""

    paper = (
        "Rajkumar Ramamurthy et al., Is reinforcement learning (not) for natural language processing: benchmarks, "
        "baselines, and building blocks for natural language policy optimization, 2023"
    )

    class Config(Options):
        """Options of `increasing-numbers`."""

        min_tokens: int = Field(
            20, gt=0, description="texts of fewer than half as many words count as that long"
        )

    config: Config

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([increasing_run(text, self.config.min_tokens) for text in rollout.texts]))


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def increasing_run(text: str, min_tokens: int = 20) -> float:
    """RL4LMs' `increasing_numbers`: c / max(words, min_tokens/2), c the length of the run from the first
    number on that ends at the first number not larger than the one before; other words are skipped."""
    words = text.split()
    numbers = [float(word) for word in words if _NUMBER.match(word)]
    if not numbers:
        return 0.0
    run = 1
    while run < len(numbers) and numbers[run] > numbers[run - 1]:
        run += 1
    return run / max(len(words), min_tokens / 2)
