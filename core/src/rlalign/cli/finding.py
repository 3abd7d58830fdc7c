"""What `rlalign doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    state: Literal["ok", "note", "wrong"]
    said: str
    remedy: str = ""
    """What to do; empty only where all is well."""


def ok(about: str, said: str) -> Finding:
    return Finding(about, "ok", said)


def note(about: str, said: str, remedy: str) -> Finding:
    return Finding(about, "note", said, remedy)


def wrong(about: str, said: str, remedy: str) -> Finding:
    return Finding(about, "wrong", said, remedy)
