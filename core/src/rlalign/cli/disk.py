"""The commands `runs` and `clean`: what runs take on the disk, and making it less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlalign.cli.guarded import guarded, say

if TYPE_CHECKING:
    from rlalign.records.listing import Listed


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"), metavar="[FOLDER]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with sizes in bytes and ages in seconds.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def runs(folder: Path, as_json: bool, debug: bool) -> None:
    """List the runs in FOLDER (by default `runs`): how each stands, and what it takes on the disk."""

    def work() -> None:
        from dataclasses import asdict

        from rlalign.cli import inspection
        from rlalign.records import listing

        found, total = listing.runs(folder)
        if as_json:
            rows = [{key: value for key, value in asdict(one).items() if value is not None} for one in found]
            say(inspection.as_json({"folder": str(folder), "runs": rows, "bytes": total}))
        else:
            say(_table(found, total) if found else f"{folder}: holds no runs")

    guarded(debug, work)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--rows", is_flag=True, help="Delete the responses it kept too (`rows/`).")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def clean(names: tuple[str, ...], rows: bool, dry_run: bool, debug: bool) -> None:
    """Keep of finished runs the model, the pipeline and the logs; delete checkpoints and what belongs to them."""

    def work() -> None:
        from rlalign.cli import inspection
        from rlalign.records.cleaning import clean as cleaned

        folders = list(dict.fromkeys(inspection.run_folder(name) for name in names))
        for folder in folders:  # one that is refused leaves all as they are
            cleaned(folder, rows=rows, dry_run=True)
        for folder in folders:
            say(_freed(folder, cleaned(folder, rows=rows, dry_run=dry_run), dry_run))

    guarded(debug, work)


def _freed(folder: Path, freed: Mapping[str, int], dry_run: bool) -> str:
    from rlalign.data.limits import in_words

    if not freed:
        return f"{folder}: nothing to delete"
    parts = ", ".join(f"{name}/ {in_words(size)}" for name, size in freed.items())
    return f"{folder}: {'would free' if dry_run else 'freed'} {in_words(sum(freed.values()))} ({parts})"


def _table(found: Sequence[Listed], total: int) -> str:
    from rlalign.data.limits import in_words
    from rlalign.running.figures import duration

    def size(count: int | None) -> str:
        return "" if count is None else in_words(count)

    head = ("run", "state", "written", "last", "size", "checkpoints")
    rows = [
        (
            one.name.replace("\n", "\\n"),
            _state(one),
            "" if one.age is None else f"{duration(one.age)} ago",
            "" if one.value is None else f"{one.figure} {one.value:.4g}",
            size(one.bytes),
            size(one.checkpoints),
        )
        for one in found
    ]
    rows = [head, *rows, (f"{len(found)} in all", "", "", "", size(total), "")]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows
    )


def _state(one: Listed) -> str:
    """`stopped at align, 3 of 10`"""
    if one.why is not None:
        return f"damaged: {one.why.partition(': ')[0]}"
    if one.iteration is None:
        return one.state
    of = "" if one.iterations is None else f" of {one.iterations}"
    return f"{one.state} at {f'{one.phase}, ' if one.phase else ''}{one.iteration}{of}"
