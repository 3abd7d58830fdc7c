"""A corridor with a key at one end and a door at the other: the smallest environment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Generator

from rlalign import Environment, Episode, Example, Options, Turn

KEY, DOOR, STEP = 0.5, 1.0, -0.02
"""What the key pays, what the door pays to who has it, and every other step."""


class ToyCorridor(Environment):
    """Go left for the key, then right to the door. The floor is slippery: some steps go nowhere."""

    class Config(Options):
        """Options of `toy-corridor`."""

        cells: int = Field(
            5, gt=1, le=1_000, description="cells; the key is in the first, the door in the last"
        )
        slip: float = Field(0.1, ge=0, lt=1, description="the chance that a step goes nowhere")
        steps: int = Field(30, gt=0, le=10_000, description="steps of the longest episode")
        size: int = Field(
            32, gt=0, le=1_000_000, description="examples in each split, each with a first cell of its own"
        )
        choices: bool = Field(False, description="nothing but `left` and `right` may be said")
        rewrites: bool = Field(
            False, description="each step is a response of its own, to the cell as its prompt"
        )

    config: Config
    generation = {"temperature": 1.0}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns = config.steps
        self.tokens = 8 * config.steps
        self.rewrites = config.rewrites

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-{i}", "") for i in range(self.config.size)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        cell = int(torch.randint(self.config.cells, (1,), generator=start))
        walk = _Walk(self.config, cell, noise)
        return walk, walk.turn(0.0)


class _Walk:
    """Where somebody is, and whether with the key."""

    def __init__(self, config: ToyCorridor.Config, cell: int, noise: Generator) -> None:
        self.config, self.cell, self.key, self.noise = config, cell, False, noise

    def turn(self, reward: float) -> Turn:
        choices = ("left", "right") if self.config.choices else None
        return Turn(f"{self.cell} key" if self.key else f"{self.cell}", reward, choices=choices)

    def step(self, text: str) -> Turn:
        way = {"left": -1, "right": 1}.get(text.strip(), 0)
        if float(torch.rand(1, generator=self.noise)) >= self.config.slip:
            self.cell = max(0, min(self.config.cells - 1, self.cell + way))
        if self.cell == 0 and not self.key:
            self.key = True
            return self.turn(KEY)
        if self.key and self.cell == self.config.cells - 1:
            return Turn(reward=DOOR, done=True)
        return self.turn(STEP)
