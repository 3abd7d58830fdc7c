"""`rlalign plugins`: what is installed, and whether it does what it must."""

from __future__ import annotations

import subprocess
import sys

import click

from rlalign.cli.guarded import guarded


@click.command()
@click.argument("name", required=False)
@click.option("--check", "load", is_flag=True, help="Import every component and say what is broken.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--conform", is_flag=True, help="Run the tests that every component of NAME's kind must pass.")
@click.option("--options", metavar="'{…}'", help="With --conform: NAME's options, in place of its defaults.")
@click.option("--declare", metavar="'{…}'", help="With --conform: what its own test class would say of it.")
def plugins(
    name: str | None, load: bool, as_json: bool, conform: bool, options: str | None, declare: str | None
) -> None:
    """List the installed components by kind; or tell all of one: its options, hooks, models and place."""
    from rlalign.cli import catalogue

    if (conform and name is None) or ((options or declare) and not conform):
        raise click.UsageError("say `rlalign plugins NAME --conform`; --options and --declare go with it")
    if conform:  # in a process of its own: the tests look at the whole process
        command = [
            sys.executable,
            "-m",
            "rlalign.testing.conform",
            str(name),
            options or "{}",
            declare or "{}",
        ]
        sys.exit(subprocess.run(command, check=False).returncode)
    if name is not None:
        guarded(False, lambda: catalogue.one(name, as_json))
    elif not catalogue.everything(load, as_json):
        sys.exit(1)
