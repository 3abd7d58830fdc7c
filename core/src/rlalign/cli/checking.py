"""The command `check`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from rlalign.cli.guarded import guarded, say
from rlalign.cli.terminal import folded


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--machine",
    metavar="MACHINE",
    help="What fits there, how it would be laid out, what a step would cost: 8xH100, here, or numbers as in "
    "8x80GB,990TF,3.35TB/s.",
)
@click.option(
    "--smoke",
    is_flag=True,
    help="Also run one small iteration of each phase on the processor, in a folder that goes: shrunk models, few "
    "examples, short responses.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all digits.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def check(
    file: Path, overrides: tuple[str, ...], machine: str | None, smoke: bool, as_json: bool, debug: bool
) -> None:
    """Check a pipeline without loading a model: names, options, wiring. Exit code 2 if it cannot run."""

    def report() -> None:
        from rlalign import api

        pipeline = api.load(file, overrides)
        if as_json:
            from rlalign.cli.inspection import as_json as written

            facts = pipeline.facts(machine)
            say(written({**facts, "smoke": pipeline.smoke().strip().splitlines()} if smoke else facts))
            return
        say(folded(pipeline.check(machine)), nl=False)
        if smoke:
            say(folded(pipeline.smoke()), nl=False)

    guarded(debug, report, notes=logging.INFO)
