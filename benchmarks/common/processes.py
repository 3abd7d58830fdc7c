"""Runs in processes of their own, some at a time: forked from one that has imported everything."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from benchmarks.common.results import Planned, Recorded

P = TypeVar("P", bound=Planned)
R = TypeVar("R", bound=Recorded)


def _prepare(modules: Iterable[str]) -> None:
    """Import what every run needs, once, and stay with one thread."""
    torch.set_num_threads(1)
    for name in modules:
        importlib.import_module(name)
    importlib.import_module("transformers").logging.set_verbosity_error()


def run_all(
    todo: Sequence[P],
    work: Path,
    workers: int,
    make: Callable[[P], R],
    of: Callable[[str], R],
    done: Callable[[R], None],
    *,
    imported: Iterable[str],
) -> list[str]:
    """Make each in a process of its own, `workers` at a time; `done` gets the record, read from its line by `of`.

    Returns the keys of those that failed for another reason than what they computed; why stands on stderr.
    """
    _prepare(imported)
    work.mkdir(parents=True, exist_ok=True)
    waiting, failed = list(reversed(todo)), []
    running: dict[int, P] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                planned = waiting.pop()
                running[_forked(planned, work, make)] = planned
            pid, status = os.wait()
            planned = running.pop(pid)
            result = _result(work, planned)
            if status == 0:
                done(of(result.read_text()))
                result.unlink()
            else:
                failed.append(planned.key)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGTERM)
    return failed


def folder_of(work: Path, key: str) -> Path:
    """Where the run of this key does its work."""
    return work / key.replace("/", "+")


def _result(work: Path, planned: Planned) -> Path:
    return work / f"{planned.key.replace('/', '+')}.json"


def _forked(planned: P, work: Path, make: Callable[[P], Recorded]) -> int:
    """A process that makes one run; it leaves its line in a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _result(work, planned).write_text(make(planned).line())
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        print(f"{planned.key}:", file=sys.stderr)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def made_with(lock: Mapping[str, Any]) -> dict[str, str]:
    """From a run's lock.json: what computed it. Hashes of the plugins' code are cut short."""
    plugins = {name: about["code"][:8] for name, about in lock["plugins"].items()}
    return {"torch": lock["packages"]["torch"], "device": lock["device"]["model"], **plugins}


class Progress:
    """A line for each run that is done, and how long the rest takes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.started = time.monotonic()
        self.seen = 0

    def done(self, said: str) -> None:
        self.seen += 1
        left = (time.monotonic() - self.started) / self.seen * (self.count - self.seen) / 60
        print(f"{self.seen}/{self.count}  {said}  ({left:.0f} min left)", flush=True)
