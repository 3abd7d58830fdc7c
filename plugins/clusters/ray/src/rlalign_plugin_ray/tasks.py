"""Pieces of work as tasks: as many at a time as the cluster has room for."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rlalign_plugin_ray.cluster import Settings
from rlalign_plugin_ray.connecting import connect, gpus, note_room

X = TypeVar("X")
Y = TypeVar("Y")


def each(
    settings: Settings, work: Callable[[X], Y], some: Sequence[X], memory: float | None
) -> Generator[tuple[X, Y | Exception], None, None]:
    connect(settings)
    wanted = {"CPU": settings.cpus, "GPU": gpus(settings), "memory": (memory or 0) * 1e9}
    note_room(wanted)
    task = ray.remote(
        num_cpus=wanted["CPU"],
        num_gpus=wanted["GPU"],
        memory=int(wanted["memory"]) or None,
        max_retries=settings.failures,  # where the process or its machine is lost
        max_calls=1,
    )(done)
    waiting: dict[Any, X] = {task.remote(os.getcwd(), work, one): one for one in some}
    try:
        while waiting:
            [there], _ = ray.wait([*waiting], num_returns=1)
            one = waiting.pop(there)
            try:
                yield one, ray.get(there)
            except RayError as error:
                yield one, error
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


def done(folder: str, work: Callable[[X], Y], one: X) -> Y:
    """One piece, in a process of the cluster."""
    os.chdir(folder)
    return work(one)
