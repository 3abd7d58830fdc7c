"""Blocks that are put on each other, one at a time: a planning problem small enough to be known whole.

A position is what the environment says: its stacks, each from the bottom to the top and in the order of the alphabet,
and what the hand holds: `ac d hand b`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from pydantic import Field, model_validator
from torch import Generator

from rlalign import Environment, Episode, Example, Options, Turn

GOAL = 1000.0
"""What `goal_pairs` says of a position where the goal is reached."""


class Position(NamedTuple):
    """Where the blocks are."""

    stacks: tuple[str, ...]
    """Each from the bottom to the top, in the order of the alphabet."""
    held: str = ""

    @staticmethod
    def of(text: str) -> Position:
        """As it is said."""
        stacks, _, held = text.partition(" hand ")
        return Position(tuple(stacks.split()), held)

    def __str__(self) -> str:
        return " ".join(self.stacks) + (f" hand {self.held}" if self.held else "")

    def moves(self) -> dict[str, Position]:
        """The positions that may come next, by what is done."""
        return dict(self._moves())

    def _moves(self) -> Iterator[tuple[str, Position]]:
        for stack in self.stacks:
            others = [other for other in self.stacks if other != stack]
            rest, top = stack[:-1], stack[-1]
            if self.held:
                yield f"stack-{self.held}-{top}", _sorted([*others, stack + self.held])
            elif rest:
                yield f"unstack-{top}-{rest[-1]}", _sorted([*others, rest], top)
            else:
                yield f"pick-up-{top}", _sorted(others, top)
        if self.held:
            yield f"put-down-{self.held}", _sorted([*self.stacks, self.held])

    def above(self, block: str) -> int:
        """How many blocks stand on one."""
        return next((len(stack) - stack.index(block) - 1 for stack in self.stacks if block in stack), 0)


def _sorted(stacks: Sequence[str], held: str = "") -> Position:
    return Position(tuple(sorted(stacks)), held)


def distances(goal: Position) -> dict[Position, int]:
    """Moves to the goal, by position. Every move can be taken back, so these are all there are: 125 of four blocks."""
    found, waiting = {goal: 0}, deque([goal])
    while waiting:
        at = waiting.popleft()
        for to in at.moves().values():
            if to not in found:
                found[to] = found[at] + 1
                waiting.append(to)
    return found


def goal_pairs(example: Example, transcript: Sequence[tuple[str, Turn]]) -> float:
    """What a position is worth: 1000 at the goal; else a sum over the pairs that stand on each other there.

    1 if they do here, ½ if the lower is clear and the upper in the hand, else minus the blocks on either.
    """
    turn = transcript[-1][1]
    return GOAL if turn.done else pairs_of(Position.of(str(turn.say)), example.meta["goal"])


def pairs_of(position: Position, goal: Sequence[str]) -> float:
    """That sum."""
    total = 0.0
    for lower, upper in (pair for stack in goal for pair in pairwise(stack)):
        if any(lower + upper in stack for stack in position.stacks):
            total += 1
        elif position.held == upper and position.above(lower) == 0:
            total += 0.5
        else:
            total -= position.above(upper) + position.above(lower)
    return total


class ToyBlocks(Environment):
    """Blocks, a hand and a goal: pick up, put down, stack and unstack until they stand as they should."""

    class Config(Options):
        """Options of `toy-blocks`."""

        goal: tuple[str, ...] = Field(
            ("dcba",),
            description="how they should stand: stacks of blocks, a letter each, from the bottom to the top",
        )
        distance: int | None = Field(
            None, gt=0, description="only starts so many moves from the goal; null: all, with an empty hand"
        )
        steps: int = Field(20, gt=0, le=10_000, description="moves of the longest episode")

        @model_validator(mode="after")
        def _stands(self) -> ToyBlocks.Config:
            blocks = "".join(self.goal)
            if len(set(blocks)) != len(blocks) or not blocks.isalpha() or not 1 < len(blocks) <= 6:
                raise ValueError("a goal has two to six blocks, each a letter of its own")
            if not all(self.goal):
                raise ValueError("a stack of the goal is empty")
            return self

    config: Config
    generation = {"temperature": 1.0}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens = config.steps, 40 * config.steps
        self.goal = _sorted(config.goal)

    def examples(self, split: str) -> Sequence[Example]:
        far = self.config.distance
        starts = sorted(
            str(at) for at, moves in distances(self.goal).items()
            if moves and not at.held and far in (None, moves)
        )  # fmt: skip
        meta = {"goal": self.config.goal}
        return [Example(f"{split}-{i}", start, meta=meta) for i, start in enumerate(starts)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        hand = _Hand(Position.of(str(example.prompt)), self.goal)
        return hand, hand.turn()


class _Hand:
    """An episode."""

    def __init__(self, at: Position, goal: Position) -> None:
        self.at, self.goal = at, goal

    def turn(self) -> Turn:
        return Turn(str(self.at), choices=tuple(self.at.moves()))

    def step(self, text: str) -> Turn:
        self.at = self.at.moves().get(text.strip(), self.at)
        return Turn(reward=1.0, done=True) if self.at == self.goal else self.turn()

    def fork(self) -> _Hand:
        return _Hand(self.at, self.goal)
