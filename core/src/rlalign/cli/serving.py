"""The command `serve-reward`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from rlalign.cli.guarded import guarded, say


@click.command("serve-reward")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7710, show_default=True, help="0: any free one."
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def serve_reward(file: Path, host: str, port: int, debug: bool) -> None:
    """Serve the rewards of FILE (`rewards:` as in a pipeline, or a whole one) to runs that say `isolate: {at: …}`."""

    def serve() -> None:
        from rlalign.config.registry import Registry
        from rlalign.serving.server import Server, host_all, token_for

        token_for(host)  # before anything is loaded
        hosted = host_all(file, Registry(trust=True), say)
        server = Server(hosted, host, port)
        shown = f"[{host}]" if ":" in host else host
        say(f"serving at {shown}:{server.port}; Ctrl-C ends it")
        server.serve()

    guarded(debug, serve, notes=logging.INFO)
