"""The commands `rlalign report` and `rlalign watch`. Nothing heavy is imported before it is needed, and torch never."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [...]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page.  [default: report.html; of one run NAME-report.html]",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write the charts as pictures into this folder.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["svg", "png"]),
    multiple=True,
    default=("svg",),
    show_default=True,
    help="Of the pictures; may be repeated.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def report(
    runs: tuple[str, ...], out: Path | None, plots: Path | None, formats: tuple[str, ...], debug: bool
) -> None:
    """Write what one run did, or several compared, as one HTML file that needs no network.

    Runs that differ in nothing but the seed are shown as one line: their mean with its interval.
    """
    from rlalign.cli.guarded import guarded, say
    from rlalign.errors import ConfigError

    def work() -> None:
        from rlalign.records.result import Result
        from rlalign.records.rundir import write_atomic
        from rlalign_report import page
        from rlalign_report.data import page_data
        from rlalign_report.run import Run, find

        folders = [Result(find(said)).folder for said in runs]  # what is no run is refused
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise ConfigError(f"{', '.join(map(str, folders))}: one run is named twice")
        read = [Run(folder) for folder in folders]
        for run in read:
            run.look()
        data = page_data(read)
        target = out or Path(f"{read[0].name}-report.html" if len(read) == 1 else "report.html")
        if not target.parent.is_dir():
            raise ConfigError(
                f"{target}: there is no folder {target.parent}; make it, or choose another --out"
            )
        write_atomic(target, page.html(data))
        for said in data["limits"]:
            say(f"note: {said}", err=True)
        alarms = [f"{run['name']}: {alarm['title']}" for run in data["runs"] for alarm in run["alarms"]]
        for said in alarms:
            say(f"alarm: {said}", err=True)
        say(f"{target}: {target.stat().st_size / 1e6:.1f} MB, opens in any browser of 2024 or newer")
        if plots is not None:
            try:
                from rlalign_report import plots as pictures
            except ImportError:
                raise ConfigError("--plots needs matplotlib: `pip install matplotlib`") from None
            for path in pictures.draw(data, plots, formats):
                say(str(path))

    guarded(debug, work)


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Of this machine.  [default: a free one]"
)
@click.option("--open", "open_", is_flag=True, help="Open the page in a browser.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def watch(run: str, port: int, open_: bool, debug: bool) -> None:
    """Show the report of a run while it goes on, on a page for this machine alone. Ctrl-C ends it.

    The run may not have begun yet, and may end or be killed: the page says how it stands, and follows it when it
    goes on.
    """
    from rlalign.cli.guarded import guarded, say

    def work() -> None:
        from rlalign_report.run import Run, find
        from rlalign_report.watch import Watch

        with Watch(Run(find(run)), port) as server:
            say(f"watching {server.watched.folder} at")
            say(f"  {server.address}")
            say("for browsers on this machine; the address is the key. Ctrl-C ends it.")
            if open_:
                import webbrowser

                webbrowser.open(server.address)
            server.serve()

    guarded(debug, work)
