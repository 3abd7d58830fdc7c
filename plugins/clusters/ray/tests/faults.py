"""Rewards and an environment that fail once, and then no more: a file says that they did."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from rlalign import Batch, Component, Episode, Example, Options, Rollout, Run, Score, Turn, hookimpl
from rlalign.errors import ConfigError
from rlalign_plugin_table import Table
from rlalign_plugin_toy_tasks.corridor import ToyCorridor


class Dies(Component):
    """Which action was chosen; the second of several processes is killed in the fifth iteration."""

    class Config(Options):
        """Options."""

        once: Path = Field(description="the file, below the folder that the run works in")

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        if os.environ.get("RANK") == "1" and run.iteration == 4 and first(Path(self.config.once.name)):
            os.kill(os.getpid(), signal.SIGKILL)
        return Score(rollout.actions_NT[:, 0].float())


class Errs(Component):
    """An error of its own in the third iteration, of the second of several processes alone or of all."""

    class Config(Options):
        """Options."""

        alone: bool = Field(description="whether the others do not have it")

    @hookimpl(wrapper=True)
    def advantage(self, run: Run) -> Generator[None, Batch, Batch]:
        batch = yield
        if run.iteration == 2 and (os.environ.get("RANK") == "1" or not self.config.alone):
            raise ConfigError("an error of its own")
        return batch


class Waits(Component):
    """Which action was chosen; several processes wait in the fifth iteration until they are gone, and say so."""

    class Config(Options):
        """Options."""

        waits: Path = Field(description="the file, below the folder that the run works in")

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and run.iteration == 4:
            Path(self.config.waits.name).touch()
            time.sleep(1000)
        return Score(rollout.actions_NT[:, 0].float())


class Fails(Component):
    """Which action was chosen; one process dies over the first question, one hangs over the next."""

    class Config(Options):
        """Options."""

        folder: Path = Field(description="where the files are")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        if first(self.config.folder / "died"):
            os.kill(os.getpid(), signal.SIGKILL)
        if first(self.config.folder / "hung"):
            time.sleep(1000)
        return Score(rollout.actions_NT[:, 0].float())


class Slow(Component):
    """Which action was chosen, after half a second, and once so many processes have said that they are there."""

    class Config(Options):
        """Options."""

        folder: Path = Field(description="where the files are")
        present: int = Field(1, description="how many processes")

    def setup(self, run: Run) -> None:
        (self.config.folder / f"process-{os.getpid()}").touch()

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        while len([*self.config.folder.glob("process-*")]) < self.config.present:
            time.sleep(0.1)
        time.sleep(0.5)
        return Score(rollout.actions_NT[:, 0].float())


class Perishes(Table):
    """A table; the process that is the first to sample for the third time is killed over it."""

    class Config(Table.Config):
        """Options."""

        folder: str = Field(description="where the file is")

    config: Config
    asked = 0

    def sample(self, *given: Any) -> Rollout:
        self.asked += 1
        if self.asked == 3 and first(Path(self.config.folder, "died")):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(*given)


class Loses(ToyCorridor):
    """A corridor; one process dies in the middle of an episode, one hangs."""

    class Config(ToyCorridor.Config):
        """Options."""

        folder: Path = Field(description="where the files are")

    config: Config

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        episode, turn = super().start(example, start, noise)
        return Lost(episode, self.config.folder), turn


class Lost:
    """One of its episodes."""

    def __init__(self, episode: Episode, folder: Path) -> None:
        self._episode, self._folder, self._steps = episode, folder, 0

    def step(self, text: str) -> Turn:
        self._steps += 1
        if self._steps == 3 and first(self._folder / "died"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._steps == 5 and first(self._folder / "hung"):
            time.sleep(1000)
        return self._episode.step(text)


def first(file: Path) -> bool:
    """Whether the file was not there; it is now."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
