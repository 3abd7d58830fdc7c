"""How this process comes to a cluster."""

from __future__ import annotations

import logging
import sys
import threading

import ray

from rlalign.errors import ConfigError
from rlalign_plugin_ray.cluster import Settings

_one_at_a_time = threading.Lock()


def connect(settings: Settings) -> None:
    """Take part in the cluster that is meant, unless this process is part of one."""
    with _one_at_a_time:
        if ray.is_initialized():
            return
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
    lacking = [what for what, amount in wanted.items() if amount > there.get(what, 0)]
    if lacking:
        print(
            f"note: ray: the cluster has too little {' and '.join(lacking)}; Ray waits for more",
            file=sys.stderr,
        )


def first_line(error: Exception) -> str:
    """What went wrong, without a traceback and the addresses below it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
