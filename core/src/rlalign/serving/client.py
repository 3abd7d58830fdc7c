"""Whoever answers in another process, from this side: begun when it is wanted, ended where it failed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rlalign.config import clusters
from rlalign.config.pipeline import Elsewhere
from rlalign.errors import ComponentError, shortened, shown
from rlalign.serving.afar import Afar
from rlalign.serving.child import START_SECONDS, Child
from rlalign.serving.host import Recipe
from rlalign.serving.protocol import TOKEN, Broken, Channel, NoRoom, Refused, introduce, want

T = TypeVar("T")
CONNECT_SECONDS = 10.0


class End(Protocol):
    """Whoever answers, from this side."""

    def ready(self) -> None: ...
    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]: ...
    def how_it_ended(self) -> str: ...
    def last_words(self) -> str: ...
    def close(self) -> None: ...


class Remote:
    """A server of rewards."""

    def __init__(self, address: str, recipe: Recipe) -> None:
        self._recipe = recipe
        host, _, port = address.rpartition(":")
        try:
            connected = socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS)
        except (OSError, OverflowError) as error:
            raise Broken(f"cannot be reached ({error}); is `rlalign serve-reward` running there?") from error
        self.channel = Channel(connected)

    def ready(self) -> None:
        introduce(self.channel, os.environ.get(TOKEN), CONNECT_SECONDS)
        want(self.channel, self._recipe.name, self._recipe.digest, START_SECONDS)

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        return self.channel.ask(question, seconds)

    def how_it_ended(self) -> str:
        return "closed the connection"

    def last_words(self) -> str:
        return ""

    def close(self) -> None:
        self.channel.close()


def process(recipe: Recipe, limits: Elsewhere, log: Path | None) -> End:
    """A process of its own, of this machine or of a cluster."""
    if limits.cluster:
        return Afar(clusters.find(limits.cluster, "cluster"), recipe)
    return Child(recipe, limits.memory, log)


class Client:
    """One that answers. It is asked by one thread at a time; `close` may be called from any.

    What went wrong is Broken, in words that follow its name: another try may go well. What would be refused again is a
    ComponentError, which names `who`.
    """

    def __init__(self, who: str, seconds: float, make: Callable[[], End]) -> None:
        self._who, self._seconds, self._make = who, seconds, make
        self.end: End | None = None
        """None: nobody is there yet, or any more."""
        self._closed = threading.Event()

    def ready(self) -> End:
        """Have it there."""
        if (end := self.end) is not None:
            return end
        if self._closed.is_set():
            raise Broken("was ended")
        with self._failing():
            self.end = end = self._make()
            if self._closed.is_set():  # meanwhile
                raise Broken("was ended")
            end.ready()
        return end

    def ask(self, question: dict[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        """What is read from its answer; ValueError says that it is none."""
        end = self.ready()
        with self._failing():
            answer = end.ask(question, self._seconds)
            if "error" not in answer:
                return read(answer)
        raise Broken(shortened(shown(str(answer["error"])), 2000))  # and its process goes on

    def close(self) -> None:
        """End its process, or the connection, and begin none any more."""
        self._closed.set()
        self._drop()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever fails in here ends it."""
        try:
            yield
        except BaseException as error:  # Ctrl-C, too: its answer would be taken for that to the next question
            said = self._what_happened(error)
            self._drop()
            if isinstance(error, Refused):
                raise ComponentError(f"{self._who}: {shown(str(error))}") from error
            if isinstance(error, Broken | ValueError) and not isinstance(error, NoRoom):
                raise Broken(said) from error
            raise

    def _what_happened(self, error: BaseException) -> str:
        """Called before the process is ended, for its last words."""
        if (end := self.end) is None:
            return str(error)
        said = end.how_it_ended() if str(error).startswith("closed the connection") else str(error)
        words = end.last_words()
        return f"{said}; the last that it printed:\n{words}" if words else said

    def _drop(self) -> None:
        end, self.end = self.end, None
        if end is not None:
            end.close()
