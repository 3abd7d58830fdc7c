"""Rewards that fail once, and then no more: a file says that they did."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pydantic import Field

from rlalign import Component, Options, Rollout, Run, Score, hookimpl


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


def first(file: Path) -> bool:
    """Whether the file was not there; it is now."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
