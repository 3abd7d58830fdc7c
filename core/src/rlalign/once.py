"""What one process of a machine makes and all of them read: a large file or folder, there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def once(path: Path, make: Callable[[Path], None], *, waits: Callable[[], None] = lambda: None) -> None:
    """See to it that `path` is there: `make` writes a file or a folder elsewhere, which then gets this name.

    Whoever wants the same meanwhile waits, and is told so by `waits`. One who is killed on the way leaves nothing
    that anybody takes for the whole; the next one deletes it. Where files cannot be locked everybody makes his own,
    and the first stays.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock"), waits) as alone:
        if path.exists():
            return
        for left in path.parent.glob(f"{path.name}.*.part") if alone else ():
            _delete(left)
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        try:
            make(part)
            os.rename(part, path)
        except OSError:
            if not path.exists():  # else another was faster
                raise
        finally:
            _delete(part)


@contextmanager
def _locked(path: Path, waits: Callable[[], None]) -> Iterator[bool]:
    """Hold a file locked, which is gone afterwards; False where files cannot be locked."""
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        alone = _lock(held, waits)
        if not alone or _is_still(path, held):
            break
        os.close(held)  # whoever held it before has deleted it
    try:
        yield alone
    finally:
        if alone:
            path.unlink(missing_ok=True)
        os.close(held)


def _lock(held: int, waits: Callable[[], None]) -> bool:
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _is_still(path: Path, held: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(held))
    except FileNotFoundError:
        return False


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
