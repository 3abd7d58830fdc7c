"""The taxi of Gymnasium as text, in the stages of a curriculum: fetch the passenger, bring them, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Generator

from rlalign import Environment, Episode, Example, Options, Turn

MAP = (
    "+---------+",
    "| : | : : |",
    "| : | : : |",
    "| : : : : |",
    "| | : | : |",
    "| | : | : |",
    "+---------+",
)
STANDS = ((0, 0), (0, 4), (4, 0), (4, 3))
"""Where passengers wait and want to go: (row, column)."""
ABOARD = len(STANDS)
ACTIONS = ("south", "north", "east", "west", "pick up", "drop off")
WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1))
SCALE = 20
"""By which Gymnasium's rewards are divided."""
Stage = Literal["pickup", "dropoff", "full"]


class Taxi(NamedTuple):
    """A state: where the taxi is, at which stand the passenger (or aboard), and where to."""

    row: int
    column: int
    passenger: int
    goal: int

    @classmethod
    def of(cls, number: int) -> Taxi:
        """Gymnasium's number of a state."""
        number, goal = divmod(number, len(STANDS))
        number, passenger = divmod(number, ABOARD + 1)
        return cls(*divmod(number, 5), passenger, goal)

    @property
    def number(self) -> int:
        return ((self.row * 5 + self.column) * (ABOARD + 1) + self.passenger) * len(STANDS) + self.goal

    def after(self, action: int) -> tuple[Taxi, int, bool]:
        """(the next state, Gymnasium's reward, whether it is over)."""
        place = (self.row, self.column)
        if action < len(WAYS):
            down, right = WAYS[action]
            free = 0 <= self.row + down < 5 and (
                not right or MAP[1 + self.row][2 * self.column + 1 + right] == ":"
            )
            moved = self._replace(row=self.row + down, column=self.column + right)
            return moved if free else self, -1, False
        if ACTIONS[action] == "pick up":
            here = self.passenger < ABOARD and STANDS[self.passenger] == place
            return (self._replace(passenger=ABOARD), -1, False) if here else (self, -10, False)
        if self.passenger == ABOARD and place in STANDS:
            stand = STANDS.index(place)
            arrived = stand == self.goal
            return self._replace(passenger=stand), 20 if arrived else -1, arrived
        return self, -10, False

    @property
    def picture(self) -> str:
        """T taxi, P passenger, D where to, O the taxi at the passenger, X the passenger aboard."""
        rows = [list(line) for line in MAP]

        def draw(row: int, column: int, letter: str) -> None:
            rows[1 + row][2 * column + 1] = letter

        draw(*STANDS[self.goal], "D")
        waits = self.passenger < ABOARD
        if waits:
            draw(*STANDS[self.passenger], "P")
        at = waits and STANDS[self.passenger] == (self.row, self.column)
        draw(self.row, self.column, "O" if at else "T" if waits else "X")
        return "\n".join("".join(line) for line in rows)


STARTS = tuple(
    state for state in map(Taxi.of, range(500)) if state.passenger < ABOARD and state.passenger != state.goal
)


def begun(state: Taxi, stage: Stage) -> Taxi:
    """Where a stage begins: `dropoff` where the passenger has just been picked up."""
    if stage != "dropoff":
        return state
    row, column = STANDS[state.passenger]
    return Taxi(row, column, ABOARD, state.goal)


def driven(state: Taxi, action: int, stage: Stage, picked_up: bool) -> tuple[Taxi, float, bool]:
    """A step of a stage: what changes nothing costs 10 and ends it; the first pick-up earns 20, and ends `pickup`."""
    after, reward, over = state.after(action)
    if after == state:
        return state, -10 / SCALE, True
    if after.passenger == ABOARD != state.passenger and stage != "dropoff" and not picked_up:
        return after, 20 / SCALE, stage == "pickup"
    return after, reward / SCALE, over


class TextTaxi(Environment):
    """Drive a taxi in a picture of letters; an action that changes nothing ends the episode."""

    paper = (
        "Runlong Zhou, Simon S. Du and Beibin Li, Reflect-RL: two-player online RL fine-tuning for LMs, 2024"
    )

    class Config(Options):
        """Options of `text-taxi`."""

        stage: Stage = Field("full", description="`pickup`, `dropoff` with the passenger aboard, or both")
        steps: int = Field(20, gt=0, le=10_000, description="steps of the longest episode")
        size: int = Field(300, gt=0, le=1_000_000, description="examples in each split")

    config: Config
    generation = {"temperature": 1.0}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens = config.steps, 200 * config.steps

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-{i}", "") for i in range(self.config.size)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        state = STARTS[int(torch.randint(len(STARTS), (1,), generator=start))]
        drive = Drive(begun(state, self.config.stage), self.config.stage)
        return drive, Turn(drive.state.picture, choices=ACTIONS)


class Drive:
    """An episode."""

    def __init__(self, state: Taxi, stage: Stage) -> None:
        self.state, self.stage, self.picked_up = state, stage, False

    def step(self, text: str) -> Turn:
        action, before = ACTIONS.index(text) if text in ACTIONS else -1, self.state
        if action < 0:
            return Turn(reward=-10 / SCALE, done=True, metrics={"success": 0.0})
        self.state, reward, over = driven(before, action, self.stage, self.picked_up)
        self.picked_up |= self.state.passenger == ABOARD
        metrics = {"success": float(over and reward > 0)}
        return Turn(self.state.picture, reward, done=over, choices=ACTIONS, metrics=metrics)
