"""How this process comes to a cluster."""

from __future__ import annotations

import logging
import sys

import ray

from rlalign_plugin_ray.cluster import Settings


def connect(settings: Settings) -> None:
    """Take part in the cluster that is meant, unless this process is part of one."""
    if ray.is_initialized():
        return
    from rlalign.errors import ConfigError

    try:
        ray.init(address=settings.address, logging_level=logging.WARNING)
    except Exception as error:  # of many kinds
        where = f"no cluster at {settings.address}" if settings.address else "no cluster could be begun"
        raise ConfigError(f"ray: {where}: {first_line(error)}") from error


def gpus(settings: Settings) -> float:
    """GPUs of a process that computes with models."""
    if settings.gpus is not None:
        return settings.gpus
    return float(ray.cluster_resources().get("GPU", 0) > 0)


def note_room(wanted: dict[str, float]) -> None:
    """Say what the cluster lacks: Ray waits for it, as some clusters grow."""
    there = ray.cluster_resources()
    lacking = [
        f"{amount:g} {what}, has {there.get(what, 0):g}"
        for what, amount in wanted.items()
        if amount > there.get(what, 0)
    ]
    if lacking:
        print(f"note: ray: asks for {' and '.join(lacking)}; it waits until there is more", file=sys.stderr)


def first_line(error: Exception) -> str:
    """What went wrong, without a traceback and the addresses below it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
