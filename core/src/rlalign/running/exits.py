"""Leaving a run half-way: nothing in it can end the process as if all had gone well."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LEAVING = ("_exit", "execv", "execve")
"""What ends the program without a word; `os.exec*` all come down to these."""
_HOMES = (os, sys.modules[os.name])
_exit_at_once = os._exit
_lock = threading.Lock()
_going_on: list[tuple[int, int]] = []
"""(process, thread) of whatever has begun and is not finished."""


@contextmanager
def unfinished() -> Iterator[None]:
    """While this goes on `os._exit` and its like raise SystemExit in this thread, so that whoever called them is named
    as for any error; in another thread they end the process, but not with 0. A forked child has the real ones.
    """
    here = (os.getpid(), threading.get_ident())
    with _lock:
        if not _going_on:
            _replace({name: _told(name, getattr(os, name)) for name in _LEAVING})
        _going_on.append(here)
    try:
        yield
    finally:
        with _lock:
            _going_on.remove(here)
            if not _going_on:
                _replace({name: getattr(os, name).real for name in _LEAVING})


def _replace(functions: dict[str, Callable[..., Any]]) -> None:
    for home in _HOMES:
        for name, function in functions.items():
            setattr(home, name, function)


def _told(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def leave(*given: Any, **named: Any) -> Any:
        threads = [thread for process, thread in _going_on if process == os.getpid()]
        if not threads:
            return real(*given, **named)
        said = f"os.{name}({', '.join(repr(each)[:60] for each in given)}) at {_caller()}"
        if threading.get_ident() in threads:
            raise SystemExit(said)
        whose = threading.current_thread().name
        os.write(2, f"error: {said}, called in the thread {whose} while a run goes on\n".encode())
        code = given[0] if name == "_exit" and given and isinstance(given[0], int) else 0
        return _exit_at_once(code & 0xFF or 1)

    leave.real = real  # type: ignore[attr-defined]
    return leave


def _caller() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename == os.__file__:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
