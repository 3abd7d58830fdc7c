"""Two components that keep the budgets of all arms equal."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field

from rlalign import Batch, Component, Options, Run, hookimpl


class Ending(Component):
    """Ends a phase: `a-lol` and `r-lol` would cut the planned iterations to the share of the log they keep."""

    class Config(Options):
        """Options of `ending`."""

        after: int = Field(gt=0, description="iterations")

    config: Config

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        if run.iteration >= self.config.after:
            run.finish_phase("the budget is spent")


class AtMost(Component):
    """The first so many responses of what filters above have left."""

    class Config(Options):
        """Options of `at-most`."""

        n: int = Field(gt=0, description="responses")

    config: Config

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        return batch.take(torch.arange(min(self.config.n, len(batch))))


components = {"ending": Ending, "at-most": AtMost}
