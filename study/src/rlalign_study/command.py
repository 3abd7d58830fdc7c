"""The command `rlalign study`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rlalign_study.core import Cluster
    from rlalign_study.file import Study
    from rlalign_study.plan import Planned
    from rlalign_study.rows import Results, Row

STEPS = ("plan", "run", "report")


class Jobs(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """How many runs at a time, or the cluster that has them."""

    name = "N|CLUSTER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Cluster:
        if not isinstance(value, str) or value.lstrip("-").isdecimal():
            return int(click.IntRange(min=1).convert(value, param, ctx))
        from rlalign_study import core

        try:
            return core.cluster(value)
        except core.ConfigError as error:
            self.fail(str(error), param, ctx)


jobs = click.option(
    "--jobs",
    type=Jobs(),
    default=1,
    show_default=True,
    help="Runs at a time, or where they are: ray, ray://ADDRESS, `ray: {…}`.",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("steps", nargs=-1, type=click.Choice(STEPS))
@jobs
@click.option(
    "--memory", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="The most a run may use."
)
@click.option("--only", default="", metavar="TEXT", help="Only runs with this in their name.")
@click.option("--again", is_flag=True, help="Try runs again that failed.")
@click.option("--names", is_flag=True, help="In the plan, name every run.")
@click.option("--keep", is_flag=True, help="Keep the folders of runs.")
@click.option(
    "--runs", type=click.Path(path_type=Path), help="Where runs do their work.  [default: runs/NAME]"
)
@click.option(
    "--results", type=click.Path(path_type=Path), help="Where results lie.  [default: what FILE says]"
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def study(file: Path, steps: tuple[str, ...], debug: bool, **options: object) -> None:
    """Run a study and report on it: FILE [plan] [run] [report], all three if none is named.

    Stopped at any time, the same command goes on where it was. Results of several machines count together: their
    .jsonl files need only lie in the folder of results.
    """
    with guarded(debug):
        from rlalign_study.file import Study

        sys.exit(Work(Study.read(file), **options).do(steps or STEPS))  # type: ignore[arg-type]


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """End with a sentence and an exit status, whatever was wrong with what somebody wrote."""
    from rlalign_study.core import RLAlignError

    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped: the same command goes on from here", err=True)
        sys.exit(130)
    except RLAlignError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


class Work:
    """A study, and what the command line says about it."""

    def __init__(
        self,
        study: Study,
        jobs: int | Cluster = 1,
        memory: float | None = None,
        only: str = "",
        again: bool = False,
        names: bool = False,
        keep: bool = False,
        runs: Path | None = None,
        results: Path | None = None,
    ) -> None:
        self.study = study
        self.jobs, self.only, self.again, self.names, self.keep = jobs, only, again, names, keep
        self.memory = memory or self.study.memory
        self.runs = (runs or Path("runs") / self.study.name).absolute()
        self.folder = results or self.study.folder / self.study.results

    def do(self, steps: Sequence[str]) -> int:
        """The steps in their order; the exit status."""
        status = 0
        if "plan" in steps or "run" in steps:
            self.check()
        if "plan" in steps:
            self.plan()
        if "run" in steps:
            status = self.run()
        if "report" in steps:
            from rlalign_study import report

            click.echo("\n".join(report.write(self.study, self.results(), self.folder)))
        return status

    def results(self) -> Results:
        from rlalign_study.rows import Results

        return Results.read(self.folder)

    def check(self) -> None:
        """Every pipeline of the study, checked by rlalign: a mistake shows before the first run."""
        from rlalign_study import core

        seen: set[str] = set()
        for stage, runs in self.stages(self.results()):
            for one in runs:
                what = one.key.rpartition("/")[0]
                if stage == "prepare" or what in seen:
                    continue
                seen.add(what)
                try:
                    core.check(one.pipeline, self.study.folder, self.study.hooks.components)
                except core.ConfigError as error:
                    place = re.escape(f"{self.study.folder / 'pipeline.yaml'}:1")
                    unplaced = re.sub(rf"{place}: | \({place}\)", "", str(error))
                    raise core.ConfigError(f"{self.study.path}: the pipeline of {what}: {unplaced}") from None

    def stages(self, results: Results) -> Iterator[tuple[str, list[Planned]]]:
        """Stage by stage its runs; where nothing is chosen yet, with the first setting in the place of the chosen."""
        from rlalign_study import plan
        from rlalign_study.analysis import Found

        worlds = [Found(self.study, world, results) for world in self.study.worlds]
        first = [
            {arm: plan.settings(self.study, found.name, arm)[0] for arm in self.study.arms_of(found.name)}
            | found.chosen
            for found in worlds
        ]
        yield plan.TUNING, self.wanted([one for found in worlds for one in found.tuning])
        for stage, planned in ((plan.MAIN, plan.main), (plan.ABLATION, plan.ablation)):
            some = [
                one for f, at in zip(worlds, first, strict=True) for one in planned(self.study, f.name, at)
            ]
            yield stage, self.wanted(some)

    def wanted(self, planned: Sequence[Planned]) -> list[Planned]:
        return [one for one in planned if self.only in one.key]

    def plan(self) -> None:
        """How many runs there are, how many are left, and how long they may take."""
        results, known, left = self.results(), dict[tuple[str, str], list[float]](), list["Planned"]()
        for row in results.rows.values():
            if "seconds" in row.metrics and row.stage != "prepare":
                known.setdefault((row.world, row.arm), []).append(row.metrics["seconds"])
        for stage, runs in self.stages(results):
            there = {key: row for key, row in results.of(runs).items() if not self.undone(row)}
            for world in dict.fromkeys(one.world for one in runs):
                here = [one for one in runs if one.world == world]
                done = sum(one.key in there for one in here)
                failed = sum(there[one.key].status == "failed" for one in here if one.key in there)
                told = f"{len({one.arm for one in here})} arms, {done - failed} done"
                told += f", {failed} failed" if failed else ""
                click.echo(f"{stage:9} {world:16} {len(here):5} runs of {told}")
            left += [one for one in runs if one.key not in there]
            if self.names:
                click.echo("\n".join(f"    {one.key}" for one in runs))
        for note in results.notes:
            click.echo(note)
        click.echo(
            f"{len(left)} {'run is' if len(left) == 1 else 'runs are'} left" + self.estimate(left, known)
        )

    def estimate(self, left: Sequence[Planned], known: dict[tuple[str, str], list[float]]) -> str:
        from rlalign_study.core import duration

        if not left:
            return ""
        every = [seconds for some in known.values() for seconds in some]
        usual = sum(every) / len(every) if every else self.study.seconds
        if usual is None:
            return "; how long they take is known once one is done (or say `seconds` in the study file)"
        times = {at: sum(some) / len(some) for at, some in known.items()}
        total = sum(times.get((one.world, one.arm), usual) for one in left)
        by = f"by {len(every)} runs that are done" if every else "by the study file's `seconds`"
        if not isinstance(self.jobs, int):
            return f", about {duration(total)} one after the other ({by})"
        return f", about {duration(total / self.jobs)} with --jobs {self.jobs} ({by})"

    def undone(self, row: Row) -> bool:
        return self.again and row.status == "failed"

    def run(self) -> int:
        """What is not done yet: tuning, then the reported runs, then ablations, each after what it begins with."""
        from rlalign_study import plan
        from rlalign_study.analysis import Found
        from rlalign_study.runner import alone

        failed: list[Row] = []
        with alone(self.runs):
            for stage in (plan.TUNING, plan.MAIN, plan.ABLATION):
                results = self.results()
                worlds = [Found(self.study, world, results) for world in self.study.worlds]
                attribute = {plan.TUNING: "tuning", plan.MAIN: "planned", plan.ABLATION: "ablations"}[stage]
                runs = self.wanted([one for found in worlds for one in getattr(found, attribute)])
                for found in worlds if stage == plan.MAIN else ():
                    if found.waiting:
                        some = ", ".join(f"{arm} ({n} left)" for arm, n in found.waiting.items())
                        click.echo(f"{found.name}: not yet tuned, and so left out: {some}")
                    for arm in set(found.tried) - set(found.waiting) - set(found.chosen):
                        click.echo(f"{found.name}: left out, as no setting of {arm} came to its end")
                failed += self.make(stage, runs, results)
        for row in failed:
            click.echo(
                f"failed: {row.key}: {row.why}; see {self.runs}, and try it again with --again", err=True
            )
        return 1 if failed else 0

    def make(self, stage: str, runs: Sequence[Planned], results: Results) -> list[Row]:
        """Make the runs that are not there, and before them what they begin with; those that failed."""
        from rlalign_study import plan
        from rlalign_study.runner import Progress, run_all
        from rlalign_study.worker import mark_of

        known = {key: row for key, row in results.of(runs).items() if not self.undone(row)}
        failed = [row for row in known.values() if row.status == "failed"]
        todo = [one for one in runs if one.key not in known]
        if runs:
            click.echo(f"{stage}: {len(known)} of {len(runs)} runs are there")
        first = [
            one
            for one in plan.prepared(self.study, todo)
            if not mark_of(one, self.runs).exists() or mark_of(one, self.runs).read_text() != one.hash
        ]
        path = self.folder / f"{self.study.name}.jsonl"
        for some in (first, todo):
            progress = Progress(len(some))

            def done(row: Row, progress: Progress = progress) -> None:
                there = results.rows.get((row.key, row.hash))
                if (
                    there is None or there.status == "failed"
                ):  # what is prepared again here may be known already
                    results.add(row, path)
                if row.status == "failed":
                    failed.append(row)
                click.echo(progress.line(f"{row.key}  {self.said(row)}"))

            run_all(self.study, some, self.runs, self.jobs, done, memory=self.memory, keep=self.keep)
            if some is first and any(row.stage == plan.PREPARE for row in failed):
                return failed
        return failed

    def said(self, row: Row) -> str:
        if row.status != "done":
            return f"{row.status}: {row.why}"
        first, known = next(iter(self.study.final), ""), self.study.metrics_of(row.world)
        values = {name: row.metrics.get(f"{first}.{name}") for name in known}
        final = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        return f"{row.metrics.get('seconds', 0):.0f} s  {final}".rstrip()
