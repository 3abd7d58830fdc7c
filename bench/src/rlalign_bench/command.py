"""The command `rlalign bench`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
@click.argument("suite", type=click.Path(path_type=Path))
@click.pass_context
def bench(context: click.Context, suite: Path) -> None:
    """A leaderboard: algorithms on the tasks of SUITE, each finished run an entry that can be checked."""
    context.obj = suite
