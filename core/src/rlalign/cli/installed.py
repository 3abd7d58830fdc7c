"""Commands of other installed packages: the entry points `rlalign.commands`, each a click command."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import click

GROUP = "rlalign.commands"


class InstalledCommands(click.Group):
    """A group of commands that installed packages add to. Only the command that is asked for is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group=GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        for point in () if own else entry_points(group=GROUP, name=cmd_name):
            return _load(point.name, point.value, point.load)
        return own


def _load(name: str, value: str, load: Callable[[], Any]) -> click.Command:
    """The command, or in place of a broken one a command that says what is wrong with it."""
    try:
        found = load()
    except Exception as error:
        why = f"{name} ({value}) cannot be imported: {type(error).__name__}: {error}"
    else:
        if isinstance(found, click.Command):
            return found
        why = f"{name} ({value}) is no click command"

    def broken() -> None:
        raise click.ClickException(f"{why}; install its package again, or remove it")

    return click.Command(name, callback=broken, short_help=f"(broken: {why})")
