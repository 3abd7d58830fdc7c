"""The command line of a study: what is missing is run, what would run is listed, what is there is reported."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.common.results import Planned

P = TypeVar("P", bound=Planned)
Does = Callable[[argparse.Namespace], int]


def main(
    description: str | None,
    *,
    run: Does,
    plan: Does,
    report: Does,
    worlds: tuple[str, Iterable[str]],
    stages: Iterable[str],
    arms: Iterable[str] = (),
    runs: Path,
) -> int:
    """Parse, and do it; the exit status. `worlds` are chosen by an option of the name that comes with them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    some = {worlds[0]: list(worlds[1]), "stage": list(stages), "arms": list(arms)}
    for name, does in (("run", run), ("plan", plan), ("report", report)):
        command = commands.add_parser(name, help=does.__doc__)
        command.set_defaults(does=does)
        for option, choices in some.items():
            if choices and (name != "report" or option == worlds[0]):
                said = {"metavar": option.upper(), "help": ", ".join(choices)}
                command.add_argument(f"--{option}", nargs="+", choices=choices, default=choices, **said)
        if name == "plan":
            command.add_argument("--all", action="store_true", help="name every run")
        if name == "run":
            command.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
            command.add_argument(
                "--only", default="", metavar="TEXT", help="only runs with this in their name"
            )
            command.add_argument("--runs", type=Path, default=runs, help="where run folders lie")
            command.add_argument("--keep", action="store_true", help="keep the run folders")
    args = parser.parse_args()
    try:
        return int(args.does(args))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        return 130


def missing(stage: str, wanted: Sequence[P], there: Mapping[str, object]) -> list[P]:
    """Those that are not there; says how many are."""
    print(f"{stage}: {len(there)} of {len(wanted)} runs are there", flush=True)
    return [one for one in wanted if one.key not in there]


def ended(failed: Sequence[str]) -> int:
    """Name the runs that failed; the exit status."""
    for key in failed:
        print(f"failed: {key} (why stands above); the same command tries it again")
    return 1 if failed else 0
