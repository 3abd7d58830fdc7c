"""What rlalign asks of a cluster, asked of Ray. Ray is imported when it is used: that takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from pydantic import Field

from rlalign.data.limits import COUNT
from rlalign.interface.cluster import Answers, Asked, Cluster

X = TypeVar("X")
Y = TypeVar("Y")


class Settings(Cluster.Config):
    """Options of `ray`."""

    address: str | None = Field(
        None,
        description="the cluster's head, `HOST:6379`; null: the one that `RAY_ADDRESS` names or that this machine is "
        "part of, else a new one, of this machine alone, as long as the command runs",
    )
    cpus: float = Field(1.0, ge=0, le=COUNT, description="processor cores of each process")
    gpus: float | None = Field(
        None,
        ge=0,
        le=COUNT,
        description="GPUs of each process; null: one where the cluster has any, none for a reward or an environment",
    )
    failures: int = Field(
        3,
        ge=0,
        le=COUNT,
        description="how often the processes of a run, or a study's run, are started again after one of them was lost",
    )
    least: int | None = Field(
        None,
        gt=0,
        le=COUNT,
        description="how few processes a run may have while the cluster has no room for all; it is started again with "
        "more once there is. null: it waits for room for all",
    )


class Ray(Cluster):
    """Ray, as a cluster for rlalign."""

    Config = Settings
    config: Settings

    def launch(self, processes: int, first: Sequence[str], again: Sequence[str]) -> int:
        from rlalign_plugin_ray import training

        return training.launch(self.config, processes, first, again)

    def each(
        self, work: Callable[[X], Y], some: Sequence[X], memory: float | None
    ) -> Generator[tuple[X, Y | Exception], None, None]:
        from rlalign_plugin_ray import tasks

        return tasks.each(self.config, work, some, memory)

    def start(self, make: Callable[[], Answers]) -> Asked:
        from rlalign_plugin_ray import actors

        return actors.Actor(self.config, make)
