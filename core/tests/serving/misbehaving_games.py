"""An environment that misbehaves on request: in what it is told, or in how it is set up."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Generator

from rlalign import Environment, Episode, Example, Options, Turn


class Game(Environment):
    """Says what it heard, with a number of chance; `now KIND` is a request to misbehave, `once KIND` for one time."""

    class Config(Options):
        """Options of the tests."""

        at_start: str = ""
        marks: Path | None = None  # a folder that holds what was done once

    config: Config
    turns, tokens = 4, 200

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-{i}", f"game {i}") for i in range(64)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        self.misbehave(self.config.at_start)
        number = int(torch.randint(1000, (1,), generator=start))
        return Round(self, noise), Turn(f"{example.prompt}, {number}: ")

    def misbehave(self, asked: str) -> Any:
        when, _, what = asked.partition(" ")
        if when == "once":
            assert self.config.marks is not None
            mark = self.config.marks / what
            if mark.exists():
                return None
            mark.touch()
        return MISDEEDS[what]() if when in ("once", "now") else None


class Restless(Game):
    """Draws from the whole machine, and so plays otherwise each time."""

    replays = False

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        game, turn = super().start(example, start, noise)
        game.restless = True  # type: ignore[attr-defined]
        return game, turn


class Liar(Restless):
    """The same, and does not say so."""

    replays = True


class AtOnce(Game):
    """Begins all its games in one call."""

    def start_all(self, examples: Any, starts: Any, noises: Any) -> Sequence[tuple[Episode, Turn]]:
        return [super(AtOnce, self).start(*each) for each in zip(examples, starts, noises, strict=True)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        raise NotImplementedError


class Unlucky(Game):
    """Raises in one of its games, whatever is said."""

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        game, turn = super().start(example, start, noise)
        game.unlucky = example.id == "train-5"  # type: ignore[attr-defined]
        return game, turn


class Round:
    """One of its games."""

    restless = unlucky = False

    def __init__(self, game: Game, noise: Generator) -> None:
        self.game, self.noise, self.heard = game, noise, 0

    def step(self, text: str) -> Any:
        self.heard += 1
        chance = int(torch.randint(1000, (1,), generator=self.noise))
        if self.restless:
            chance = int.from_bytes(os.urandom(4), "little")
        if self.unlucky and self.heard == 2:
            raises()
        if (wrong := self.game.misbehave(text)) is not None:
            return wrong
        return Turn(f" {self.heard}, {chance}: ", float(len(text)), metrics={"chance": chance})


def raises() -> None:
    raise LookupError("no such door")


def exits() -> None:
    raise SystemExit("bye")


def hangs() -> None:
    time.sleep(600)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves() -> None:
    os._exit(3)


def prints() -> None:
    os.write(1, b"not for you\n" * 20_000)
    print("nor this", flush=True)


def seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


def fills() -> None:
    held = bytearray(2 * 2**30)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(600)


MISDEEDS: dict[str, Any] = {
    "raises": raises,
    "exits": exits,
    "hangs": hangs,
    "dies": dies,
    "leaves": leaves,
    "fills": fills,
    "is not finite": lambda: Turn("", float("nan")),
    "measures infinity": lambda: Turn("", 0.0, metrics={"size": float("inf")}),
    "says 10 MB": lambda: Turn("x" * 10_000_000),
    "says no turn": lambda: "hello",
    "says bytes": lambda: Turn([{"role": "user", "content": b"x"}]),
    "prints": prints,
    "seeds": seeds,
}
