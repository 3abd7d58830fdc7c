"""Weights & Biases: what a run is, how it comes on, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rlalign import Tracked, Tracker

__all__ = ["WandB"]


class WandB(Tracker):
    """Sends a run's figures to Weights & Biases, or keeps them in its folder to be sent later."""

    class Config(Tracker.Config):
        """Options of `wandb`."""

        entity: str | None = Field(None, description="the team or user there; null: your default one")
        group: str | None = Field(None, description="runs of one group are shown together")
        mode: Literal["online", "offline"] | None = Field(
            None,
            description="`offline`: written to the run's folder (`wandb/`), for `wandb sync`; null: as WANDB_MODE says",
        )

    config: Config
    requires = "wandb"
    keys = ("WANDB_API_KEY",)

    def begin(self, run: Tracked) -> None:
        import wandb

        config = self.config
        self._there = wandb.init(
            id=run.id,
            resume="allow",
            dir=run.folder,
            name=run.name,
            config=dict(run.pipeline),
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags,
            mode=config.mode,
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )

    def log(self, figures: Mapping[str, float], tick: int) -> None:
        self._there.log(dict(figures), step=tick)

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], tick: int) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self._there.log({"samples": table}, step=tick)

    def end(self, error: str | None) -> None:
        self._there.summary["ended"] = error or "finished"
        self._there.finish(exit_code=0 if error is None else 1)
