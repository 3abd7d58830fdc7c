"""Learning from logs of known quality: the study that README.md beside this file names before looking.

python benchmarks/offline/study.py run         # all that is not done yet; may be stopped and started again
python benchmarks/offline/study.py plan        # what would run
python benchmarks/offline/study.py report      # results/table.md, plugins' blocks and the curves
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
from benchmarks.offline import logs, plan, results
from benchmarks.offline.measures import Prepared, Record


def planned(stage: str, log: logs.Log, arms: Sequence[str]) -> list[plan.Planned]:
    """A stage's runs of a log. The main runs are those of the arms whose tuning is done."""
    tuning = plan.tuning(log, arms)
    if stage == "tuning":
        return tuning
    return plan.main(log, plan.choose(log, results.read(tuning, results.FOLDER)))


def run(args: argparse.Namespace) -> int:
    """Tuning on all logs, then the main runs; before each, the logs and references it needs."""
    failed: list[str] = []
    for stage in args.stage:
        wanted = [one for log in args.log for one in planned(stage, logs.LOGS[log], args.arms)]
        missing = {arm for arm in args.arms for log in args.log} - {one.arm.name for one in wanted}
        if missing:
            print(f"{stage}: not yet tuned, and so left out: {', '.join(sorted(missing))}")
        failed += _missing_made(stage, [one for one in wanted if args.only in one.key], args)
    return command.ended(failed)


def _missing_made(stage: str, wanted: Sequence[plan.Planned], args: argparse.Namespace) -> list[str]:
    from benchmarks.common.processes import Progress
    from benchmarks.offline import runner

    todo = command.missing(stage, wanted, results.read(wanted, results.FOLDER))
    grounds = [
        ground for ground in dict.fromkeys(one.ground for one in todo) if not runner.ready(ground, args.runs)
    ]
    first, then = Progress(len(grounds)), Progress(len(todo))

    def laid(found: Prepared) -> None:
        results.add(found, results.FOLDER)
        first.done(f"{found.run}  {found.seconds:.0f} s  reference's reward {found.reference.reward:.3f}")

    def done(record: Record) -> None:
        results.add(record, results.FOLDER)
        at = record.last
        what = f"reward {at.reward:.3f}  KL {at.kl:.2f}  grammar {at.grammar:.2f}" if at else record.broke
        then.done(f"{record.run}  {record.seconds:.0f} s  {what}")

    failed = runner.prepare_all(grounds, args.runs, args.jobs, laid)
    if failed:
        return failed
    then = Progress(len(todo))
    return runner.run_all(todo, args.runs, args.jobs, done, keep=args.keep)


def show(args: argparse.Namespace) -> int:
    """How many runs there are; each by name with --all."""
    for stage in args.stage:
        for log in map(logs.LOGS.__getitem__, args.log):
            some = {arm: plan.trials(plan.ARMS[arm])[0] for arm in args.arms}
            made = plan.tuning(log, args.arms) if stage == "tuning" else plan.main(log, some)
            print(f"{stage:7} {log.name:6} {len(made):4} runs", dict(Counter(one.arm.name for one in made)))
            if args.all:
                print("\n".join(f"    {one.key}" for one in made))
    return 0


def report(args: argparse.Namespace) -> int:
    """Tables, answers and curves from whatever is there."""
    from benchmarks.offline import report as reports

    reports.write(results.FOLDER, args.log)
    return 0


def main() -> int:
    return command.main(
        __doc__,
        run=run,
        plan=show,
        report=report,
        worlds=("log", logs.LOGS),
        stages=plan.STAGES,
        arms=plan.ARMS,
        runs=Path("runs/offline"),
    )


if __name__ == "__main__":
    sys.exit(main())
