"""The commands `compare`, `diff`, `reproduce` and `chat`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rlalign.cli import options


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all digits.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def compare(names: tuple[str, ...], as_json: bool, debug: bool) -> None:
    """Compare runs, finished or not: evaluations, reward, KL, tokens and seconds; each row against the first.

    Runs that differ in their seed only are one row: means with 95 % t-intervals.
    """
    from rlalign.cli.guarded import guarded, say

    def work() -> None:
        from rlalign.cli.inspection import as_json as json
        from rlalign_compare import shown, table
        from rlalign_compare.runs import distinct

        lines = table.lines(distinct(names))
        pairs = table.pairs(lines)
        say(json(shown.data(lines, pairs)) if as_json else shown.text(lines, pairs))

    guarded(debug, work)


@click.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all digits.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def diff(one: str, other: str, as_json: bool, debug: bool) -> None:
    """Say in what two runs differ, and since when their metrics do; of two pipeline files what they say.

    Settings, versions, code, data and machine are compared, all as they were written down when the run began.
    """
    from rlalign.cli.guarded import guarded, say

    def work() -> None:
        from rlalign.cli.inspection import as_json as json
        from rlalign_compare.difference import between
        from rlalign_compare.difference_told import text_of

        found = between(one, other)
        say(json(found.data) if as_json else text_of(found))

    guarded(debug, work)


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--to", type=click.Path(path_type=Path), help="The new run's folder.  [default: RUN-again]")
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="The first N iterations only.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="X",
    help="How far a figure may be off, as a share of its size, of 1 at least.  [default: 0, to the bit]",
)
@click.option("--plain", is_flag=True, help="Plain lines instead of the live display.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def reproduce(
    name: str, to: Path | None, iterations: int | None, tolerance: float, plain: bool, debug: bool
) -> None:
    """Run again what a run's lock says, into a new folder, and compare every metric.

    Tells first what is not as it was then. Exit code 3 if the metrics come out otherwise.
    """
    from rlalign.cli.guarded import guarded

    def work() -> None:
        from rlalign_compare import again

        again.reproduce(name, to=to, iterations=iterations, tolerance=tolerance, plain=plain)

    guarded(debug, work, stopped="stopped before the run began")


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("overrides", nargs=-1, metavar="[evaluate.generation.KEY=VALUE]...")
@click.option(
    "--base/--no-base", default=True, show_default=True, help="Next to it what it was before training."
)
@click.option(
    "--checkpoint",
    "--at",
    "at",
    callback=options.iteration,
    metavar="ITERATION|best",
    help="The run at this checkpoint, not at its last one.",
)
@click.option("--system", help="The system message of the chat, in place of the task's.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Sample from this seed."
)
@click.option("--trust", is_flag=True, help="Let it run Python code of its own, and read your environment.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def chat(name: str, overrides: tuple[str, ...], debug: bool, **more: Any) -> None:
    """Talk with what a run trained, next to what it was before: one prompt, two answers.

    /new begins a new conversation; /quit or Ctrl-D ends. Lines of a pipe are asked in turn.
    """
    from rlalign.cli.guarded import guarded

    def work() -> None:
        from rlalign_compare import talk

        talk.talk(name, overrides, sys.stdin, **more)

    guarded(debug, work)
