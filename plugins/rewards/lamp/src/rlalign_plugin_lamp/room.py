"""`room`: a square room with a thing in each corner, and somebody who is told where to go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Generator

from rlalign import Environment, Episode, Example, Options, Turn

CORNERS = {"red key": (0, 0), "blue door": (0, 1), "green ball": (1, 0), "yellow lamp": (1, 1)}
"""Row and column of each thing, in units of the room's last cell."""
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
Thing = Literal["red key", "blue door", "green ball", "yellow lamp"]


class Room(Environment):
    """Begin in the middle, and go where the instruction says. Without a task all four instructions come in turn."""

    class Config(Options):
        """Options of `room`."""

        size: int = Field(5, gt=2, le=1_000, description="cells of a side")
        steps: int = Field(10, gt=0, le=10_000, description="steps of the longest episode")
        thing: Thing | None = Field(
            None,
            description="the one to go to, which pays 1 and ends the episode; null: each in turn, and nothing pays or "
            "ends",
        )
        count: int = Field(32, gt=0, le=1_000_000, description="examples in each split")

    config: Config
    generation = {"temperature": 1.0}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns = config.steps
        self.tokens = 16 * config.steps

    def examples(self, split: str) -> Sequence[Example]:
        things = [self.config.thing] if self.config.thing else list(CORNERS)
        asked = [things[i % len(things)] for i in range(self.config.count)]
        return [
            Example(f"{split}-{i}", "", meta={"instruction": f"go to the {thing}", "thing": thing})
            for i, thing in enumerate(asked)
        ]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        walk = Walk(self.config, example.meta["thing"])
        return walk, walk.turn()


class Walk:
    """Where somebody is."""

    def __init__(self, config: Room.Config, thing: str) -> None:
        self.config, self.thing = config, thing
        self.row = self.column = config.size // 2

    def turn(self) -> Turn:
        last = self.config.size - 1
        there = self.config.thing is not None and (self.row, self.column) == corner(self.thing, last)
        say = observation(self.row, self.column, self.config.size, self.thing)
        found = {"found": 1.0} if there else {}
        return Turn(say, float(there), done=there, choices=tuple(MOVES), metrics=found)

    def step(self, text: str) -> Turn:
        down, right = MOVES.get(text.strip(), (0, 0))
        self.row = min(max(self.row + down, 0), self.config.size - 1)
        self.column = min(max(self.column + right, 0), self.config.size - 1)
        return self.turn()


def corner(thing: str, last: int) -> tuple[int, int]:
    """The cell of a thing."""
    row, column = CORNERS[thing]
    return row * last, column * last


def observation(row: int, column: int, size: int, thing: str) -> str:
    """What is said: `1 3 of 5: red key`."""
    return f"{row} {column} of {size}: {thing}"


def observations(size: int, things: Sequence[str] = tuple(CORNERS)) -> list[str]:
    """All that may be said: `prompts` of a `table`."""
    cells = range(size)
    return [observation(row, column, size, thing) for thing in things for row in cells for column in cells]


def place(said: str) -> tuple[int, int, int]:
    """Row, column and size, as an observation says them."""
    row, column, _, size = said.partition(":")[0].split()
    return int(row), int(column), int(size)


def cells(said: Sequence[str]) -> list[str]:
    """The cell alone: what `novelty` counts."""
    return [one.partition(":")[0] for one in said]


def captions(said: Sequence[str]) -> list[str]:
    """What is seen, in words: `agent at the red key`, `agent some steps from the red key`, or in the middle."""
    return [caption(*place(one)) for one in said]


def caption(row: int, column: int, size: int) -> str:
    """What is seen from a cell."""
    (near, thing), (further, _), *_ = sorted(
        (abs(row - down) + abs(column - right), thing)
        for thing in CORNERS
        for down, right in [corner(thing, size - 1)]
    )
    if near == 0:
        return f"agent at the {thing}"
    return (
        f"agent some steps from the {thing}"
        if near < further and near <= size // 2
        else "agent in the middle"
    )
