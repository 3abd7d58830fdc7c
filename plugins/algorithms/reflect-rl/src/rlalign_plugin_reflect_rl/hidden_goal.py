"""A corridor with the goal at one end and a pit at the other: which is which is said aside, to who reflects only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Generator

from rlalign import Environment, Episode, Example, Options, Task, Turn

GOAL, PIT, STEP = 1.0, -0.5, -0.02
"""What either end pays, and every other step."""
WAYS = ("left", "right")


class HiddenGoal(Environment):
    """Go to the end that is the goal. The policy sees the cell; the side is said aside, to who reflects."""

    class Config(Options):
        """Options of `hidden-goal`."""

        cells: int = Field(7, gt=2, le=1_000, description="cells; the goal is one end, a pit the other")
        slip: float = Field(0.3, ge=0, lt=1, description="the chance to go the other way")
        steps: int = Field(12, gt=0, le=10_000, description="steps of the longest episode")
        away: int | None = Field(
            None, gt=0, description="how far from the goal an episode begins; null: in the middle"
        )
        size: int = Field(32, gt=0, le=1_000_000, description="examples in each split")

    config: Config
    generation = {"temperature": 1.0}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens = config.steps, 8 * config.steps

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-{i}", "") for i in range(self.config.size)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        goal = int(torch.randint(2, (1,), generator=start))
        walk = Walk(self.config, goal, noise)
        return walk, Turn(f"{walk.cell}", choices=WAYS)


class Walk:
    """Where somebody is."""

    def __init__(self, config: HiddenGoal.Config, goal: int, noise: Generator) -> None:
        last, away = config.cells - 1, config.away
        self.config, self.goal, self.noise = config, goal, noise
        self.cell = config.cells // 2 if away is None else abs(last * goal - min(away, last - 1))

    def aside(self) -> str:
        """The cell and the side of the goal: the policy is told the cell alone."""
        return f"{self.cell} {WAYS[self.goal]}"

    def step(self, text: str) -> Turn:
        way = WAYS.index(text.strip()) if text.strip() in WAYS else 0
        if float(torch.rand(1, generator=self.noise)) < self.config.slip:
            way = 1 - way
        self.cell += 1 if way else -1
        if self.cell in (0, self.config.cells - 1):
            found = (self.cell > 0) == bool(self.goal)
            return Turn(reward=GOAL if found else PIT, done=True, metrics={"success": float(found)})
        return Turn(f"{self.cell}", STEP, choices=WAYS, metrics={"success": 0.0})


class HiddenGoalAdvice(Task):
    """What a teacher says aside of such walks: which way to go. To teach who reflects, by `sft`."""

    class Config(Options):
        """Options of `hidden-goal-advice`."""

        cells: int = Field(7, gt=2, le=1_000, description="as in `hidden-goal`")
        stray: float = Field(
            0.9,
            ge=0,
            le=1,
            description="the chance that a demonstrated step is one at random: what is said after it is a negative "
            "example. 0: none strays from the way to the goal",
        )
        teacher: Literal["good", "contrary", "blind"] = Field(
            "good",
            description="`contrary` says the other way; `blind` does not know the goal and says either way",
        )
        size: int = Field(256, gt=0, le=1_000_000, description="examples in each split")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        c, made = self.config, list[Example]()
        chance = Generator().manual_seed(len(split))
        while len(made) < c.size:
            goal, cell = int(torch.randint(2, (1,), generator=chance)), c.cells // 2
            while 0 < cell < c.cells - 1 and len(made) < c.size:
                says = {"good": goal, "contrary": 1 - goal}
                told = WAYS[says.get(c.teacher, int(torch.randint(2, (1,), generator=chance)))]
                made.append(Example(f"{split}-{len(made)}", f"{cell} {WAYS[goal]}", responses=(told,)))
                strays = float(torch.rand(1, generator=chance)) < c.stray
                way = int(torch.randint(2, (1,), generator=chance)) if strays else goal
                cell += 1 if way else -1
        return made
