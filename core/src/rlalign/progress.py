"""How far a long piece of work is, for whoever watches. Costs next to nothing where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
"""Gets what is counted, how many are done, and of how many."""

_listening: ContextVar[Listener | None] = ContextVar("listening", default=None)


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Whatever is reported inside is told to this listener."""
    token = _listening.set(listener)
    try:
        yield
    finally:
        _listening.reset(token)


def report(what: str, done: int, of: int) -> None:
    """Say that so many are done: `report("token", 12, 64)`."""
    if (listener := _listening.get()) is not None:
        listener(what, done, of)
