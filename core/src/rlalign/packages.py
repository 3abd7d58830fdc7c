"""What the metadata of installed packages says: read once, and again when a package came, changed or went."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def while_installed(read: Callable[P, T]) -> Callable[P, T]:
    """`read`, asked once for each of its arguments as long as the same packages are installed."""
    known: tuple[object, dict[object, T]] = (None, {})

    @wraps(read)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal known
        now = _folders()
        if known[0] != now:
            known = (now, {})
        answers, asked = known[1], (args, tuple(kwargs.items()))
        if asked not in answers:
            answers[asked] = read(*args, **kwargs)
        return answers[asked]

    return remembered


def _folders() -> list[tuple[str, int, int]]:
    """The folders that Python looks in: pip, and whatever else installs, adds and removes names in one of them."""
    found = []
    for folder in sys.path:
        try:
            about = os.stat(folder or os.curdir)
        except OSError:
            continue
        found.append((folder, about.st_ino, about.st_mtime_ns))
    return found
