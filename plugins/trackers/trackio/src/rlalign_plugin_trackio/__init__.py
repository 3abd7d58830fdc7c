"""Trackio: what a run is, how it comes on, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from rlalign import Tracked, Tracker

__all__ = ["Trackio"]


class Trackio(Tracker):
    """Keeps a run's figures for Trackio on this machine, or sends them to a Space of the hub."""

    class Config(Tracker.Config):
        """Options of `trackio`."""

        group: str | None = Field(None, description="runs of one group are shown together")
        space: str | None = Field(
            None, description="a Space to send it to, `user/name`; null: as TRACKIO_SPACE_ID says"
        )
        folder: str | None = Field(
            None, description="where it is kept; null: as TRACKIO_DIR says, else with the hub's cache"
        )

    config: Config
    requires = "trackio"
    keys = ("HF_TOKEN", "TRACKIO_WRITE_TOKEN")

    def begin(self, run: Tracked) -> None:
        if self.config.folder:
            os.environ["TRACKIO_DIR"] = os.path.abspath(self.config.folder)  # read when it is imported
        import trackio

        self._trackio, self._tick = trackio, run.tick
        about = {"id": run.id, "tags": self.config.tags, "pipeline": dict(run.pipeline)}
        self._there = trackio.init(
            project=self.config.project,
            name=f"{run.name}-{run.id[:4]}",  # a name is all that it knows a run by
            group=self.config.group,
            space_id=self.config.space,
            config=about,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, figures: Mapping[str, float], tick: int) -> None:
        self._tick = tick
        self._there.log(dict(figures), step=tick)

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], tick: int) -> None:
        table = self._trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self._there.log({"samples": table}, step=tick)

    def end(self, error: str | None) -> None:
        self._there.log({"ended/well": 1.0 if error is None else 0.0}, step=self._tick)
        self._there.finish()
