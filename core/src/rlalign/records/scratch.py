"""A folder for as long as somebody works with it: what one who was killed left there goes when the next one begins."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

MEMORY = Path("/dev/shm")
"""Where files lie in memory, on Linux."""


class Scratch:
    """The folder, from now until `close`."""

    def __init__(self, name: str, where: Path | None = None) -> None:
        """Below `where`, or else in this machine's memory; `name` says whose it is."""
        where = where or (MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir()))
        where.mkdir(parents=True, exist_ok=True)
        for left in where.glob(f"{name}-*"):
            with suppress(OSError), (left / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
        made = Path(tempfile.mkdtemp(prefix=f"new-{name}-", dir=where))
        lock = (made / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.path = made.rename(made.with_name(made.name.removeprefix("new-")))  # only now others look at it
        self.close = weakref.finalize(self, _remove, self.path, lock)
        """Nothing of it is left then, nor once this process ends."""


def _remove(path: Path, lock: IO[str]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    lock.close()
