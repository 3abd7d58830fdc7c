"""The one process that writes a run: it holds `.running` locked, and has written its name there."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
import time
from pathlib import Path

from rlalign.errors import ConfigError


def hold(run: Path) -> tuple[int, bytes]:
    """Be the run's one writer until the descriptor is closed or the process ends, however it ends."""
    path = run / ".running"
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise ConfigError(f"{run}: the run cannot be written: {error.strerror}.") from error
    try:
        _lock(held)
    except OSError as error:
        found = os.pread(held, 1000, 0)
        os.close(held)
        if not isinstance(error, BlockingIOError):
            raise ConfigError(f"{path}: cannot be locked on this file system: {error.strerror}.") from error
        raise ConfigError(
            f"{run}: {process(found)} is writing this run. Wait for it, stop it, or start a new run."
        ) from None
    token = f"{os.getpid()} {socket.gethostname()} {secrets.token_hex(8)}\n".encode()
    os.ftruncate(held, 0)
    os.pwrite(held, token, 0)
    return held, token


def _lock(held: int) -> None:
    for wait in (0.02, 0.2, None):  # whoever only asks whether a run is written holds it for a moment
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise
            time.sleep(wait)


def is_written(run: Path) -> bool:
    """Whether a process writes this run now."""
    try:
        asked = os.open(run / ".running", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(asked, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # files cannot be locked here
        return False
    finally:
        os.close(asked)
    return False


def process(token: bytes) -> str:
    """Whom a `.running` names; its text may be anybody's."""
    named = re.fullmatch(rb"([1-9]\d{0,9}) ([\w.-]{1,64}) [0-9a-f]{16}\n", token)
    if named is None:
        return "another process"
    host = named[2].decode()
    return f"process {named[1].decode()}" + ("" if host == socket.gethostname() else f" on {host}")
