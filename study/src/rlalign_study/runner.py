"""Runs in processes of their own, some at a time, each under a cap of memory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from rlalign_study.core import Cluster, ConfigError, duration
from rlalign_study.file import Study
from rlalign_study.plan import PREPARE, Planned
from rlalign_study.rows import FAILED, Row

Jobs = int | Cluster
"""How many runs at a time on this machine, or a cluster that has room for some."""
LOOK = 0.1
"""Seconds between two looks at the memory of runs."""


@dataclass
class _Running:
    planned: Planned
    process: BaseProcess
    log: Path
    killed: str = ""


def run_all(
    study: Study,
    todo: Sequence[Planned],
    work: Path,
    jobs: Jobs,
    done: Callable[[Row], None],
    *,
    memory: float | None = None,
    keep: bool = False,
) -> None:
    """Make each run in a process of its own, `jobs` at a time; `done` gets its row, also of one that failed.

    `memory` is the most gigabytes (resident, with its children) that one run may use before it is killed.
    """
    from rlalign_study.worker import failed

    waiting = list[Planned]()
    for planned in todo:
        row = _left(planned, work)  # of a study that was killed before it wrote it down
        if row is None:
            waiting.append(planned)
        else:
            _take(row, _log_of(planned, work), done)
    if not waiting:
        return
    rows: Generator[tuple[Planned, Row | Exception], None, None] | Generator[tuple[Planned, Row], None, None]
    if isinstance(jobs, int):
        rows = _here(study, waiting, work, jobs, memory, keep)
    else:
        rows = jobs.each(partial(_alone, study, work, memory, keep), waiting, memory)
    with contextlib.closing(rows):
        for planned, found in rows:
            row = failed(planned, f"lost: {found}") if isinstance(found, Exception) else found
            _take(row, _log_of(planned, work), done)


def _alone(study: Study, work: Path, memory: float | None, keep: bool, planned: Planned) -> Row:
    """One run's row, on another machine."""
    with contextlib.closing(_here(study, [planned], work, 1, memory, keep)) as rows:
        return next(rows)[1]


def _here(
    study: Study, todo: Sequence[Planned], work: Path, jobs: int, memory: float | None, keep: bool
) -> Generator[tuple[Planned, Row], None, None]:
    """The rows of runs on this machine, as they end."""
    # One thread for each run, and idle threads that sleep: said before a process imports torch.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A server that has imported everything is forked for each run: a run then starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "rlalign_study.preload", *study.imports])
    waiting, running = [*reversed(todo)], list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_started(context, study, waiting.pop(), work, keep))
            wait([one.process.sentinel for one in running], timeout=LOOK if memory else None)
            for one in [*running]:
                if one.process.is_alive():
                    _cap(one, memory)
                else:
                    running.remove(one)
                    yield one.planned, _row(one)
    finally:
        for one in running:
            one.process.terminate()
            one.process.join()


def _started(
    context: multiprocessing.context.ForkServerContext, study: Study, planned: Planned, work: Path, keep: bool
) -> _Running:
    from rlalign_study.worker import main, result_of

    log = _log_of(planned, work)
    result_of(log).unlink(missing_ok=True)
    process = context.Process(target=main, args=(study, planned, work, keep, log), daemon=False)
    process.start()
    return _Running(planned, process, log)


def _cap(one: _Running, memory: float | None) -> None:
    if memory is None or one.killed:
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(one.process.pid)
        family = [process, *process.children(recursive=True)]
        used = sum(member.memory_info().rss for member in family) / 1e9
        if used > memory:
            one.killed = f"killed: it used {used:.2f} GB, more than the cap of {memory:g} GB"
            for member in family:
                member.kill()


def _row(one: _Running) -> Row:
    """What the process left behind; why it failed if it left nothing."""
    from rlalign_study.worker import failed

    one.process.join()
    row = None if one.killed else _read(one.log)
    if row is not None:
        return row
    code = one.process.exitcode or 0
    ended = f"signal {-code} (out of memory?)" if code < 0 else f"exit status {code} (a full disk?)"
    return failed(one.planned, one.killed or f"ended by {ended}")


def _take(row: Row, log: Path, done: Callable[[Row], None]) -> None:
    """Pass a row on; what its process left is deleted only then, so that no row is lost in between."""
    from rlalign_study.worker import result_of

    done(row)
    result_of(log).unlink(missing_ok=True)
    if row.status != FAILED:
        log.unlink(missing_ok=True)


def _left(planned: Planned, work: Path) -> Row | None:
    """The row of a run that has ended and was not passed on."""
    row = None if planned.stage == PREPARE else _read(_log_of(planned, work))
    if row is None or row.status == FAILED or (row.key, row.hash) != (planned.key, planned.hash):
        return None
    return row


def _read(log: Path) -> Row | None:
    from rlalign_study.worker import result_of

    try:
        return Row(**json.loads(result_of(log).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _log_of(planned: Planned, work: Path) -> Path:
    return work / f"{planned.key.replace('/', '+')}.log"


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Keep a second process from running the same study in the same place."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{work}: another process is running this study here; wait for it, or give --runs another folder"
            ) from None
        yield


class Progress:
    """A line for each run that is over, and how long the rest takes."""

    def __init__(self, count: int) -> None:
        self.count, self.seen, self.started = count, 0, time.monotonic()

    def line(self, said: str) -> str:
        self.seen += 1
        left = (time.monotonic() - self.started) / self.seen * (self.count - self.seen)
        return f"{self.seen}/{self.count}  {said}  ({duration(left)} left)"
