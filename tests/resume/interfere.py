"""What happens to a process under test: it dies at a chosen instant, forgets something, or meets a full disk."""

from __future__ import annotations

import functools
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN = "rlalign.running.loop:Session.run"


def _target(name: str) -> tuple[Any, str]:
    """`module:Class.method` as (the object that holds it, its name)."""
    module, _, path = name.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    return holder, last


def _replace(name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    holder, last = _target(name)
    original = getattr(holder, last)
    setattr(holder, last, functools.wraps(original)(make(original)))


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def signal_at_event(at: int, number: int = signal.SIGKILL, since: str = RUN) -> None:
    """Get a signal at the n-th call or return of any function, Python's or C's, once `since` was called.

    Counted events spread over everything a process does and are the same on a busy machine.
    """
    seen = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), number)

    _replace(since, lambda run: lambda *args, **more: (sys.setprofile(count), run(*args, **more))[1])


def count_events(into: str, since: str = RUN) -> None:
    """Write down how many events there were once `since` was called."""
    seen = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        seen += 1

    def write() -> None:
        sys.setprofile(None)
        Path(into).write_text(str(seen))

    _replace("os:_exit", lambda leave: lambda code: (write(), leave(code)))
    _replace(since, lambda run: lambda *args, **more: (sys.setprofile(count), run(*args, **more))[1])


def signal_at_call(
    function: str, at: int = 1, when: str = "before", number: int = signal.SIGKILL, once: str | None = None
) -> None:
    """Get a signal before or after the n-th call of a function, `once` a file is there."""
    seen = 0

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            while seen == at and once is not None and not os.path.exists(once):
                time.sleep(0.005)
            if seen == at and when == "before":
                os.kill(os.getpid(), number)
            result = original(*args, **kwargs)
            if seen == at and when == "after":
                os.kill(os.getpid(), number)
            return result

        return counted

    _replace(function, make)


def die_in_log_line(log: str, at: int, bytes_written: int) -> None:
    """Die when some bytes of the n-th line of a log have reached the file."""
    seen = 0

    def make(write: Callable[..., None]) -> Callable[..., None]:
        def torn(self: Any, name: str, data: bytes) -> None:
            nonlocal seen
            seen += name == log
            if seen == at and name == log:
                write(self, name, data[:bytes_written])
                die()
            write(self, name, data)

        return torn

    _replace("rlalign.records.logs:Logs.write", make)


def die_in_file(function: str, at: int, share: float) -> None:
    """Die in a function whose second argument is a path, with a share of the file written."""
    seen = 0

    def make(write: Callable[..., Any]) -> Callable[..., Any]:
        def torn(first: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            result = write(first, path, *args, **kwargs)
            if seen == at:
                os.truncate(path, int(share * os.path.getsize(path)))
                die()
            return result

        return torn

    _replace(function, make)


def returns(function: str, value: Any) -> None:
    """The function answers with this, whatever happens: a mutant that forgets."""
    _replace(function, lambda original: lambda *args, **kwargs: value)


def full_disk(megabytes: float, after: str, at: int) -> None:
    """From the n-th call of a function on, no file may grow beyond a size."""
    seen = 0
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == at:
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 2**20), hard))
            return original(*args, **kwargs)

        return limited

    _replace(after, make)


def wait_for(file: str, function: str, at: int = 1) -> None:
    """At the n-th call of a function say `file.here`, and go on when `file` is there."""
    seen = 0

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def patient(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == at:
                Path(f"{file}.here").touch()
                while not os.path.exists(file):
                    time.sleep(0.005)
            return original(*args, **kwargs)

        return patient

    _replace(function, make)


def writes_at_once() -> None:
    """Let the run stand still until each checkpoint is whole, so that what is there when it dies is known."""
    save = "rlalign.running.checkpointing:Saver.save"
    _replace(save, lambda original: lambda saver, phase: (original(saver, phase), saver.wait())[0])


def writes_late(seconds: float) -> None:
    """Let the run go on for a while before each file of tensors is written."""
    _replace(
        "rlalign.records.checkpoint:save_tensors",
        lambda original: lambda path, tensors: (time.sleep(seconds), original(path, tensors))[1],
    )
