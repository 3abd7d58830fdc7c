"""The command `rlalign bench`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlalign_study.command import guarded, jobs

if TYPE_CHECKING:
    from rlalign_bench.ledger import Ledger
    from rlalign_bench.suite import Suite
    from rlalign_study.command import Work


@dataclass(frozen=True)
class Place:
    """A suite's file, where its results lie and where its runs do their work."""

    file: Path
    results: Path | None
    runs: Path | None

    @property
    def suite(self) -> Suite:
        from rlalign_bench.suite import Suite

        return Suite.read(self.file)

    def work(self, suite: Suite, **options: object) -> Work:
        from rlalign_study.command import Work

        return Work(suite, runs=self.runs, results=self.results, **options)  # type: ignore[arg-type]

    def ledger(self) -> Ledger:
        """All entries, and what is missing."""
        from rlalign_bench.ledger import Ledger

        suite = self.suite
        return Ledger.read(suite, self.folder(suite))

    def folder(self, suite: Suite) -> Path:
        """Where results lie."""
        return self.results or suite.folder / suite.results


_PATH = click.Path(path_type=Path)
_ONLY = click.option("--only", default="", metavar="TEXT", help="Only runs with this in their name.")
_MEMORY = click.option(
    "--memory", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="The most a run may use."
)


@click.group()
@click.argument("suite", type=_PATH)
@click.pass_context
def bench(context: click.Context, suite: Path) -> None:
    """A leaderboard: algorithms on the tasks of SUITE, each finished run an entry that can be checked."""
    context.obj = suite


def _command(do: Callable[..., int | None]) -> click.Command:
    """A command on the suite: with the options that all have, and an exit status for whatever is wrong."""

    @wraps(do)
    def call(file: Path, /, results: Path | None, runs: Path | None, debug: bool, **options: object) -> None:
        with guarded(debug):
            sys.exit(do(Place(file, results, runs), **options))

    made: Any = click.pass_obj(call)
    made = click.option("--debug", is_flag=True, help="Show tracebacks.")(made)
    made = click.option("--runs", type=_PATH, help="Where runs do their work.  [default: runs/NAME]")(made)
    made = click.option("--results", type=_PATH, help="Where results lie.  [default: what SUITE says]")(made)
    return bench.command(do.__name__)(made)


@_command
@_ONLY
@jobs
@click.option("--names", is_flag=True, help="Name every run.")
def plan(place: Place, **options: object) -> int:
    """How many runs there are, how many are left, and how long they may take."""
    return place.work(place.suite, **options).do(["plan"])


@_command
@_ONLY
@jobs
@_MEMORY
@click.option("--again", is_flag=True, help="Try runs again that failed.")
@click.option("--keep", is_flag=True, help="Keep the folders of runs.")
def run(place: Place, **options: object) -> int:
    """Make the runs that are not done yet. Stopped at any time, the same command goes on where it was."""
    return place.work(place.suite, **options).do(["plan", "run"])


_TO = click.option(
    "--to", type=_PATH, metavar="FOLDER", help="Where to write.  [default: beside the results]"
)


@_command
@_TO
def table(place: Place, to: Path | None) -> None:
    """The leaderboard: shown, and written as Markdown, JSON and CSV."""
    from rlalign_bench.table import table

    ledger = place.ledger()
    texts = table(ledger.entries, ledger.suite.bench.scores, ledger.missing)
    to = to or place.folder(ledger.suite)
    to.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (to / name).write_text(text, encoding="utf-8")
    click.echo(f"{texts['leaderboard.md']}\nwritten: {', '.join(str(to / name) for name in texts)}")


@_command
@_TO
@click.option("--png", is_flag=True, help="PNG in place of SVG.")
def plot(place: Place, to: Path | None, png: bool) -> None:
    """The leaderboard's figures."""
    try:
        from rlalign_bench.figures import plot
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise click.ClickException("figures need matplotlib: `pip install matplotlib`") from None
    ledger = place.ledger()
    to = to or place.folder(ledger.suite)
    paths = plot(ledger.entries, ledger.suite.bench.scores, to, "png" if png else "svg")
    click.echo("written: " + ", ".join(map(str, paths)))


@_command
@click.argument("file", type=_PATH)
def export(place: Place, file: Path) -> None:
    """Write all entries into FILE, which can be sent to anyone."""
    from rlalign_bench.ledger import export

    ledger = place.ledger()
    click.echo(f"{file}: {export(ledger, file)} entries")
    for missing in ledger.missing:
        click.echo(f"not in it: {missing}")


@_command
@click.argument("file", type=_PATH)
def add(place: Place, file: Path) -> None:
    """Take in the entries of FILE, all or none: what does not add up is refused."""
    from rlalign_bench.ledger import add

    suite = place.suite
    new = add(suite, place.folder(suite), file)
    click.echo("\n".join(f"taken in: {one.key}" for one in new) or "nothing new in it")


@_command
@click.option("--entry", metavar="TASK/ALGORITHM/SEED", help="This one.  [default: a random one]")
@click.option("--trust", is_flag=True, help="Run the pipeline of an entry that is none of the suite's own.")
@_MEMORY
def verify(place: Place, entry: str | None, trust: bool, memory: float | None) -> int:
    """Make an entry again from its provenance, and compare to the bit."""
    from rlalign_bench.verify import choose, verify
    from rlalign_study.runner import alone

    ledger = place.ledger()
    work = place.work(ledger.suite, memory=memory)
    with alone(work.runs):
        one = choose(ledger, entry)
        verdict = verify(ledger.suite, one, work.results(), work.runs, work.memory, trust=trust)
    click.echo("\n".join(verdict.lines))
    return 0 if verdict.same else 1
