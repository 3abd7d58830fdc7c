"""What `rlalign new pipeline` asks for in a terminal, where it is not said."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import click

from rlalign.config.outline import outline
from rlalign.config.registry import installed
from rlalign.errors import ConfigError
from rlalign_authoring import pipeline
from rlalign_authoring.pipeline import ABOUT, Chosen


def items(said: Mapping[str, str | None], rewards: Sequence[str]) -> dict[str, list[str]]:
    """What stands in each place. Rewards may be none: logged responses bring their scores."""
    lacking = [role for role, one in said.items() if one is None]
    if lacking and not sys.stdin.isatty():
        raise ConfigError(
            f"say {', '.join(f'--{role} ITEM' for role in lacking)}; in a terminal they are asked for"
        )
    found = {role: [one if one is not None else _choice(role)] for role, one in said.items()}
    asked = _choice("rewards").split() if lacking and not rewards else list(rewards)
    return {**found, "rewards": asked}


def _choice(role: str) -> str:
    outlines = {one.name: outline(one.value) for one in installed()}
    listed = {name: told for name, told in outlines.items() if role in told.places}
    click.echo(f"\n{ABOUT[role]}:", err=True)
    wide = max(map(len, listed), default=0)
    for name, told in listed.items():
        click.echo(f"  {name:{wide}}  {told.sentence}", err=True)
    if role == "rewards":
        asked = "rewards, with spaces between, or none"
        return str(click.prompt(asked, default="", show_default=False, err=True))
    return str(click.prompt(role, err=True))


def complete(role: str, one: Chosen) -> Chosen:
    """With what must be said of it; asked for in a terminal."""
    return pipeline.complete(role, one, _option if sys.stdin.isatty() else None)


def _option(name: str, about: str) -> str:
    return str(click.prompt(f"{name} ({about})", err=True))
