"""Games that the tests play: functions that make and show them, and stand-ins for packages that are not there."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

from rlalign import Example


def picture(game: Any, observation: Any, info: Any) -> str:
    """Taxi's state as its numbers."""
    row, column, passenger, goal = game.unwrapped.decode(observation)
    return f"taxi {row} {column}, passenger {passenger}, goal {goal}: "


@dataclass
class Observation:
    """What a client of OpenEnv gives beside reward and end."""

    message: str


@dataclass
class StepResult:
    """As OpenEnv's."""

    observation: Observation
    reward: float | None = None
    done: bool = False


class Countdown:
    """Say the number below the last one."""

    closed = 0

    def reset(self, seed: int | None = None) -> StepResult:
        self.number = random.Random(seed).randint(3, 9)
        return StepResult(Observation(f"{self.number}"))

    def step(self, action: int) -> StepResult:
        right = action == self.number - 1
        self.number -= 1
        return StepResult(Observation(f"{self.number}"), float(right), done=self.number == 0)

    def close(self) -> None:
        Countdown.closed += 1


def countdown() -> Countdown:
    return Countdown()


def number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else -1


def message(observation: Observation) -> str:
    return f"now {observation.message}; "


class Multiply:
    """SkyRL-gym's tutorial: two tries at a product."""

    def __init__(self, right: str) -> None:
        self.right, self.tries = right, 0

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        return [{"role": "system", "content": "Multiply."}, *prompt], {}

    def step(self, action: str) -> dict[str, Any]:
        self.tries += 1
        if action.strip() == self.right:
            return {
                "observations": [],
                "reward": 1.0,
                "done": True,
                "metadata": {"tries": self.tries, "x": "y"},
            }
        told = [{"role": "user", "content": "Try again."}]
        return {"observations": told, "reward": 0.0, "done": self.tries == 2, "metadata": {}}


def multiply(example: Example) -> Multiply:
    return Multiply(cast(str, example.references[0]).removeprefix("#### "))


class Plain:
    """Its observations are of no class of their own."""

    def reset(self) -> StepResult:
        return StepResult(cast(Observation, {"at": 0, "done": False}))

    def step(self, action: str) -> StepResult:
        return StepResult(cast(Observation, [1, 2]))


def mapping() -> Plain:
    return Plain()


def in_chat(game: Any, observation: Any, info: Any) -> list[dict[str, str]]:
    """Taxi's state as a message."""
    return [{"role": "user", "content": str(observation)}]
