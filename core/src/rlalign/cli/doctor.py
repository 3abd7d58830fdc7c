"""The command `doctor`: is this machine, and what is installed here, fit for a run? Works where much is broken."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from rlalign.cli.finding import Finding, wrong
from rlalign.cli.guarded import say
from rlalign.errors import concealed, describe_error

_WIDE = 12
"""Columns of what a finding is about."""


@click.command()
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs are to live.",
)
@click.option("--online", is_flag=True, help="Ask the model hub, too, whether it can be reached.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(runs: Path, online: bool, as_json: bool) -> None:
    """Look at this machine and at what is installed: what is wrong, and what to do. Exit code 1 if anything is."""
    found = []
    for one in _findings(runs, online):
        found.append(one)
        if not as_json:
            _tell(one)
    states = Counter(one.state for one in found)
    if as_json:
        rows = [{key: concealed(value) for key, value in vars(one).items()} for one in found]
        click.echo(
            json.dumps({"findings": rows, "wrong": states["wrong"], "notes": states["note"]}, indent=1)
        )
    else:
        say(f"\n{states['wrong']} wrong, {states['note']} to note, {states['ok']} ok")
    sys.exit(1 if states["wrong"] else 0)


def _findings(runs: Path, online: bool) -> Iterator[Finding]:
    from rlalign.cli import machine_checks, package_checks

    yield from _each(package_checks.python)
    torch = package_checks.probe_torch()
    yield from _each(lambda: package_checks.torch_finding(torch))
    yield from _each(lambda: package_checks.devices(torch))
    yield from _each(package_checks.versions)
    yield from _each(lambda: package_checks.plugins("error" not in torch))
    yield from _each(lambda: machine_checks.threads(torch.get("threads")))
    yield from _each(lambda: machine_checks.disk(runs))
    yield from _each(machine_checks.shared_memory)
    yield from _each(machine_checks.open_files)
    yield from _each(lambda: machine_checks.hub(online))
    yield from _each(machine_checks.variables)
    yield from _each(lambda: package_checks.several_processes(torch))


def _each(look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds; one that fails itself is a finding and stops no other."""
    try:
        yield from look()
    except Exception as error:
        yield wrong(
            "doctor", f"could not look further: {describe_error(error)}", "tell us: this is a fault of ours"
        )


def _tell(one: Finding) -> None:
    say(f"{one.state:5}  {one.about:{_WIDE}}  {one.said}")
    if one.remedy:
        say(f"{'':5}  {'':{_WIDE}}  → {one.remedy}")
