"""A process that ends with the one that started it, even if that is killed; whether one has ended."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

_libc = ctypes.CDLL(None)  # looked up here: a process that was just forked should not have to


def end_with(parent: int, how: int = signal.SIGKILL) -> None:
    """Have this process get a signal once its parent is gone; on Linux already once the thread is that started it."""
    try:
        _libc.prctl(1, how)  # PR_SET_PDEATHSIG
    except AttributeError:
        threading.Thread(target=_watch, args=(parent, how), daemon=True).start()
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


def has_ended(process: int) -> bool:
    """Whether a process of this machine is gone, though nobody may have asked what became of it; False if unknown."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False


def _watch(parent: int, how: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), how)
