"""An environment for rlalign: guess a number, and be told whether it is higher or lower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from rlalign import ConfigError, Environment, Episode, Example, Options, Turn
from torch import Generator

__all__ = ["ExampleName", "Game"]


class ExampleName(Environment):
    """A number is thought of; the answers are higher and lower."""

    # What the YAML may say, as a pydantic model: types and bounds are checked before anything runs, and
    # `rlalign plugins example-name` prints the descriptions. An option without a default must be given.
    class Config(Options):
        """Options of `example-name`."""

        most: int = Field(7, gt=1, description="the largest number")
        size: int = Field(64, gt=0, description="episodes in each split")

    config: Config
    turns = 5  # responses of the longest episode
    tokens = 256  # tokens of the longest one, those it is told included

    # What episodes start from. An environment is a task: docs/tasks.md says more of examples.
    def examples(self, split: str) -> Sequence[Example]:
        if split not in ("train", "val"):
            raise ConfigError(f"example-name: there is no split `{split}` (splits: train, val)")
        return [Example(f"{split}-{i}", "") for i in range(self.config.size)]

    # `start` is shared by all samples of a prompt, which are compared with each other; `noise` is each one's own.
    # Draw from these two and from nothing else: then a run that is resumed plays on to the bit.
    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        secret = int(torch.randint(1, self.config.most + 1, (), generator=start))
        return Game(secret), Turn("Guess.")


class Game:
    """One number."""

    def __init__(self, secret: int) -> None:
        self.secret = secret

    # Whatever the policy said, and it may say anything. A text is what it reads next; a list of chat messages,
    # `[{"role": "user", "content": …}]`, for a model that reads chats. `choices=(…)` allows some answers only.
    def step(self, text: str) -> Turn:
        guess = text.strip()
        if not guess.isdecimal():
            return Turn("Guess.", reward=-0.2)
        if int(guess) == self.secret:
            return Turn(reward=1.0, done=True, metrics={"found": 1.0})
        return Turn("Higher." if int(guess) < self.secret else "Lower.", reward=-0.05)
