"""Ends a phase after a number of iterations, whatever share of the data an algorithm keeps."""

from __future__ import annotations

from pydantic import Field

from rlalign import Component, Options, Run, hookimpl


class Ending(Component):
    """`a-lol` and `r-lol` cut the planned iterations to the share they keep; here all arms learn equally long."""

    class Config(Options):
        """Options of `ending`."""

        after: int = Field(gt=0, description="iterations")

    config: Config

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        if run.iteration >= self.config.after:
            run.finish_phase("the budget is spent")
