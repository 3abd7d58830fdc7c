"""The command `rlalign data`: what is fetched in another way than by reading the hub. It imports late."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.group()
def data() -> None:
    """Fetch published data that a task cannot read from the hub as they are."""


@data.group()
def fetch() -> None:
    """Fetch a data set, once, into a folder that its task takes as `path`."""


@fetch.command("narrative-qa")
@click.option("--summaries", is_flag=True, help="The questions with summaries, without the books.")
@click.option(
    "--from",
    "folder",
    type=click.Path(path_type=Path),
    help="A folder with the published files, instead of the hub.",
)
@click.option("--to", type=click.Path(path_type=Path), help="Where to write.  [default: data/narrative-qa]")
@click.option("--hub", help="The data set's name on the hub.  [default: deepmind/narrativeqa]")
@click.option("--revision", help="A commit, tag or branch.  [default: the commit that the README names]")
def narrative_qa(
    summaries: bool, folder: Path | None, to: Path | None, hub: str | None, revision: str | None
) -> None:
    """NarrativeQA's questions and summaries. Stopped at any time, the same command goes on where it was."""
    from rlalign import RLAlignError
    from rlalign_plugin_grue_tasks import summaries as work

    if not summaries:
        raise click.UsageError("say `--summaries`: the books themselves are not fetched")
    to = to or Path(work.FOLDER)
    try:
        if folder is not None:
            parts, source = work.in_a_folder(folder), str(folder.resolve())
        else:
            hub, revision = hub or work.HUB, revision or work.REVISION
            parts, source = work.on_the_hub(hub, revision), f"{hub}@{revision}"
        counts = work.fetch(parts, source, to, lambda line: click.echo(line, err=True))
    except RLAlignError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("stopped: the same command goes on from here", err=True)
        sys.exit(130)
    click.echo(f"{to}: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))
    from rlalign_plugin_grue_tasks.narrative_qa import NarrativeQA

    published = dict(zip(work.SPLITS, NarrativeQA.sizes.values(), strict=True))
    if counts != published:
        expected = ", ".join(f"{split} {count:,}" for split, count in published.items())
        click.echo(f"The published data hold {expected}: these are others.", err=True)
    click.echo(f"task: {{narrative-qa: {{path: {to}}}}}")
