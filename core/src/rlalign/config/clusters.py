"""Finds a cluster as a command line or a pipeline names it: `ray`, `ray://ADDRESS` or `ray: {cpus: 2}`."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rlalign.config import validate
from rlalign.config.places import value
from rlalign.config.words import did_you_mean, found
from rlalign.errors import ConfigError
from rlalign.interface.cluster import Cluster

GROUP = "rlalign.clusters"


def find(said: Any, where: str) -> Cluster:
    """The cluster, with its options; `where` says in messages who names it."""
    name, options = parts(said, where)
    points = entry_points(group=GROUP)
    point = next(iter(points.select(name=name)), None)
    if point is None:
        hint = did_you_mean(name, points.names) or f"; there are: {', '.join(sorted(points.names)) or 'none'}"
        raise ConfigError(f"{where}: no cluster named `{name}` is installed{hint}")
    try:
        cls: type[Cluster] = point.load()
    except Exception as error:
        raise ConfigError(f"{where}: `{name}` cannot be imported: {type(error).__name__}: {error}") from error
    wrong: list[str] = []
    config = validate.check(
        cls.Config,
        options,
        Path.cwd(),
        lambda keys, text: wrong.append(".".join([where, name, *map(str, keys)]) + f": {text}"),
    )
    if config is None:
        raise ConfigError("\n".join(wrong))
    return cls(config)


def parts(said: Any, where: str) -> tuple[str, dict[str, Any]]:
    """The name, and the options."""
    if isinstance(said, str):
        name, _, address = said.partition("://")
        if ": " not in said and not said.endswith(":"):
            return name, {"address": address} if address else {}
        said = value(said, where)
    if isinstance(said, dict) and len(said) == 1:
        [(name, options)] = said.items()
        if isinstance(name, str) and isinstance(options, dict | None):
            return name, options or {}
    raise ConfigError(
        f"{where}: expected the name of a cluster, or `name: {{…}}` with options, found {found(said)}"
    )
