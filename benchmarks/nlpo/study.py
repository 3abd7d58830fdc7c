"""Is NLPO more stable and better than PPO? The study that README.md beside this file names before looking.

python benchmarks/nlpo/study.py run         # all that is not done yet; may be stopped and started again
python benchmarks/nlpo/study.py plan        # what would run
python benchmarks/nlpo/study.py report      # results/table.md, results/readme.md and the curves
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a run, said before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import command
from benchmarks.nlpo import plan, results
from benchmarks.nlpo.measures import Record

Planned = Sequence[plan.Planned]


def planned(stage: str, world: plan.World) -> list[plan.Planned]:
    """A stage's runs in a world. All but tuning need what tuning chose."""
    tuning = plan.tuning(world)
    if stage == "tuning":
        return tuning
    chosen = plan.choose(world, results.read(tuning))
    return plan.main(world, chosen) if stage == "main" else plan.ablation(world, chosen)


def run(args: argparse.Namespace) -> int:
    """Tuning of all worlds, then their main runs, then the ablations."""
    from benchmarks.common.processes import Progress
    from benchmarks.nlpo import runner

    failed: list[str] = []
    for stage in args.stage:
        try:
            wanted = [one for world in args.world for one in planned(stage, plan.WORLDS[world])]
        except KeyError as error:
            print(f"{stage}: {error.args[0]} is not there yet: run the stage `tuning` of this world first")
            return 1
        wanted = [one for one in wanted if args.only in one.key]
        todo = command.missing(stage, wanted, results.read(wanted))
        if todo:
            progress = Progress(len(todo))

            def done(record: Record, progress: Progress = progress) -> None:
                results.add(record)
                progress.done(said(record))

            failed += runner.run_all(todo, args.runs, args.jobs, done, keep=args.keep)
    return command.ended(failed)


def said(record: Record) -> str:
    at = record.final
    what = f"reward {at.reward:.3f}  KL {at.kl:.2f}  grammar {at.grammar:.2f}" if at else record.broke
    return f"{record.run}  {record.seconds:.0f} s  {what}"


def show(args: argparse.Namespace) -> int:
    """How many runs there are; each by name with --all."""
    for world in map(plan.WORLDS.__getitem__, args.world):
        some = dict.fromkeys(plan.arms(world), plan.trials(world)[0])
        for stage in args.stage:
            made = {"tuning": plan.tuning(world)}.get(stage) or (
                plan.main if stage == "main" else plan.ablation
            )(world, some)
            arms = Counter(one.arm.name for one in made)
            print(f"{stage:9} {world.name:13} {len(made):4} runs", dict(arms) or "")
            if args.all:
                print("\n".join(f"    {one.key}" for one in made))
    return 0


def report(args: argparse.Namespace) -> int:
    """Tables and curves from whatever is there."""
    from benchmarks.nlpo import report as reports

    reports.write(results.FOLDER, args.world)
    return 0


def main() -> int:
    return command.main(
        __doc__,
        run=run,
        plan=show,
        report=report,
        worlds=("world", plan.WORLDS),
        stages=plan.STAGES,
        runs=Path("runs/study"),
    )


if __name__ == "__main__":
    sys.exit(main())
