"""An environment for rlalign: take stones in turn with an opponent; who takes the last one wins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from rlalign import ConfigError, Environment, Episode, Example, Options, Turn
from torch import Generator

__all__ = ["Game", "LastStone"]

MOVES = ("1", "2", "3")


class LastStone(Environment):
    """A heap of stones; each player in turn takes one, two or three, and who takes the last one wins."""

    paper = "Charles L. Bouton, Nim, a game with a complete mathematical theory, 1901 (of several heaps)"

    class Config(Options):
        """Options of `last-stone`."""

        most: int = Field(12, gt=1, le=100, description="the largest heap that a game begins with")
        size: int = Field(64, gt=0, description="games in each split")

    config: Config
    turns = 50  # responses of the longest game: each player takes one stone each time
    tokens = 1024  # tokens of the longest one, those it is told included

    # What games start from. An environment is a task: docs/tasks.md says more of examples.
    def examples(self, split: str) -> Sequence[Example]:
        if split not in ("train", "val"):
            raise ConfigError(f"last-stone: there is no split `{split}` (splits: train, val)")
        return [Example(f"{split}-{i}", "") for i in range(self.config.size)]

    # `start` is shared by all samples of a prompt, which are compared with each other: the heap. `noise` is each
    # one's own: the opponent. Draw from these two and from nothing else: then a resumed run plays on to the bit.
    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        heap = int(torch.randint(2, self.config.most + 1, (), generator=start))
        game = Game(heap, noise)
        return game, game.told()


class Game:
    """One heap, and an opponent who takes any number of stones that is allowed."""

    def __init__(self, heap: int, noise: Generator) -> None:
        self.heap = heap
        self.noise = noise

    def told(self, reward: float = 0.0) -> Turn:
        """What the policy reads next, and the only things that it may say then."""
        left = f"{self.heap} stones" if self.heap > 1 else "1 stone"
        return Turn(left, reward, choices=MOVES[: self.heap])

    # `text` is what the policy said: one of the choices.
    def step(self, text: str) -> Turn:
        self.heap -= int(text)
        if self.heap == 0:
            return Turn(reward=1.0, done=True)
        self.heap -= int(torch.randint(1, min(3, self.heap) + 1, (), generator=self.noise))
        if self.heap == 0:
            return Turn(done=True)
        return self.told()
