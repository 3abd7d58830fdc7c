"""A run's processes as workers of Ray Train, which starts them again where one is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from rlalign.errors import ConfigError, RankLost, RLAlignError
from rlalign_plugin_ray.cluster import Settings
from rlalign_plugin_ray.connecting import connect, gpus, note_room

os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # with it, each line comes twice
STANDS = "The last checkpoint stands; go on from it with `rlalign run --resume`"


class Stopped(RLAlignError):
    """Ctrl-C, or another signal that asks for the same."""

    def __init__(self, asked: int) -> None:
        super().__init__(f"stopped. {STANDS}")
        self.exit_code = 128 + asked


def launch(settings: Settings, processes: int, first: Sequence[str], again: Sequence[str]) -> int:
    """Have `rlalign FIRST` run in so many processes; the exit code."""
    connect(settings)
    least = settings.least or processes
    if least > processes:
        raise ConfigError(f"ray: least: {least} is more than the {processes} processes that are asked for")
    each = {"CPU": settings.cpus, "GPU": gpus(settings)}
    note_room({what: least * amount for what, amount in each.items()})
    here = Path.cwd()
    asked = [signal.SIGINT]

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number))
        signal.raise_signal(signal.SIGINT)  # which Ray knows how to hear

    signal.signal(signal.SIGTERM, stop)  # Ray's own, set as it was connected to, aborts this process
    with TemporaryDirectory(prefix=".ray-", dir=here) as notes:  # all processes see this folder
        trainer = Trainer(
            take_part,
            train_loop_config={"folder": str(here), "notes": notes, "first": [*first], "again": [*again]},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if each["GPU"] else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=processes if least == processes else (least, processes),
                use_gpu=each["GPU"] > 0,
                resources_per_worker=each,
            ),
            run_config=RunConfig(
                name="rlalign",
                storage_path=notes,
                failure_config=FailureConfig(max_failures=settings.failures),
            ),
        )
        try:
            code: int | None = trainer.fit().return_value
        except TrainingFailedError as error:
            raise RLAlignError(f"ray: {_cause(error)}. {STANDS}") from error
        except (SystemExit, RayActorError) as error:  # how Ray ends once Ctrl-C was heard
            raise Stopped(asked[-1]) from error
    if code is None:
        raise Stopped(asked[-1])
    return code


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Without the part that frees what a dead controller held: that ends with this process, too.

    It asks Ray's dashboard each second, and complains each time where there is none.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]


def take_part(said: dict[str, Any]) -> int:
    """One of the processes; the exit code. What Ray shall start again, raises."""
    from rlalign.cli.commands import program

    os.chdir(said["folder"])
    # Another one each time that Ray starts all of them.
    start = ray.get_runtime_context().get_placement_group_id()
    before = [each for each in Path(said["notes"]).glob("start *") if each.name != f"start {start}"]
    Path(said["notes"], f"start {start}").touch()
    arguments = said["again" if before else "first"]
    try:
        program(arguments, prog_name="rlalign", standalone_mode=False)
    except SystemExit as ended:
        told = ended.__context__
        if isinstance(told, RankLost) or not isinstance(told, RLAlignError):
            raise
        return told.exit_code  # it would say the same again
    return 0


def _cause(error: TrainingFailedError) -> str:
    """In a line, from the process that was lost, if one was: the others say only that it is gone."""
    if not isinstance(error, WorkerGroupError):
        return str(error).strip().splitlines()[0]
    rank, why = min(
        error.worker_failures.items(),
        key=lambda one: ("RankLost" in str(one[1]) or "SystemExit" in str(one[1]), one[0]),
    )
    return f"rank {rank}: {str(why).strip().splitlines()[0]}"
