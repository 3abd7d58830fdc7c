"""A run's processes as workers of Ray Train, which starts them again where one is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
    get_context,
)
from ray.train.torch import TorchConfig, TorchTrainer

from rlalign.errors import ConfigError, RankLost, RLAlignError
from rlalign_plugin_ray.cluster import Settings
from rlalign_plugin_ray.connecting import connect, first_line, gpus, note_room

os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # with it, each line comes twice
STANDS = "The last checkpoint stands; go on from it with `rlalign run --resume`"
PATIENCE = 10.0
"""Seconds that the others may take to end by the same error: rank 0 closes the run's files and trackers."""


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

    def stop(number: int, frame: FrameType | None) -> None:
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
        code: int | None = None
        lost: Exception | SystemExit | None = None
        why = "the run was aborted"
        with hearing() as heard:
            try:
                code = trainer.fit().return_value
            except TrainingFailedError as error:
                code, lost, why = _code(error), error, _cause(error)
            except RayError as error:
                lost, why = error, f"what starts the processes was lost ({first_line(error)})"
            except SystemExit as error:  # so ends Ray's own handler of Ctrl-C
                lost = error
    if code is not None:
        return code
    if heard:
        raise Stopped(heard[0]) from lost
    raise RLAlignError(f"ray: {why}. {STANDS}") from lost


@contextmanager
def hearing() -> Iterator[list[int]]:
    """In the end, which signals have asked to stop. Ray hears Ctrl-C by its own handler, and may end alike without."""
    heard: list[int] = []
    out, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(before)
        os.close(into)
        with open(out, "rb") as came:
            heard.extend(one for one in came.read() if one in (signal.SIGINT, signal.SIGTERM))


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's own, in two things otherwise.

    What starts processes again has no part that frees what it held in case it dies: that ends with this process, too,
    and asks Ray's dashboard each second, and complains each time where there is none. And nothing is started again
    once a process has ended by an error of its own, which it would have again.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

        class NotInVain(DefaultFailurePolicy):  # type: ignore[misc]
            def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
                if _code(training_failed_error) is None:
                    return super().make_decision(training_failed_error)
                return FailureDecision.RAISE

        policy = NotInVain(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**{**given, "failure_policy": policy})


class Ended(Exception):
    """A process has ended by an error of its own, and has said so; others wait for it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def take_part(said: dict[str, Any]) -> int:
    """One of the processes; the exit code. Where Ray shall end the others, it raises."""
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
        code = told.exit_code
    else:
        return 0
    if not all_have_ended(Path(said["notes"]), start):
        raise Ended(code)
    return code


def all_have_ended(notes: Path, start: str) -> bool:
    """Whether the other processes end by an error of their own, too, as they do where all come to the same."""
    context, until = get_context(), time.monotonic() + PATIENCE
    Path(notes, f"ended {start} {context.get_world_rank()}").touch()
    while len([*notes.glob(f"ended {start} *")]) < context.get_world_size():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _code(error: TrainingFailedError) -> int | None:
    """The exit code of a process that ended by an error of its own, unless another one was lost."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    if not all(isinstance(one, (Ended, SystemExit)) for one in failures):
        return None
    return next((one.code for one in failures if isinstance(one, Ended)), None)


def _cause(error: TrainingFailedError) -> str:
    """In a line, from the process that was lost, if one was: the others say only that it is gone."""
    if not isinstance(error, WorkerGroupError):
        return str(error).strip().splitlines()[0]
    rank, why = min(
        error.worker_failures.items(),
        key=lambda one: ("RankLost" in str(one[1]) or "SystemExit" in str(one[1]), one[0]),
    )
    return f"rank {rank}: {str(why).strip().splitlines()[0]}"
