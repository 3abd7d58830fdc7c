"""Clusters that are this machine: each process begun by Python itself, or a thread."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from rlalign.interface.cluster import Answers, Asked, Cluster


class Settings(Cluster.Config):
    """Options."""

    address: str | None = Field(None, description="nowhere in particular")
    code: int = Field(0, description="how a launch ends")


class Nearby(Cluster):
    Config = Settings

    def launch(self, processes: int, first: Sequence[str], again: Sequence[str]) -> int:
        Path("launched").write_text(
            f"{self.config.address}\n{processes}\n{' '.join(first)}\n{' '.join(again)}"
        )
        return self.config.code  # type: ignore[no-any-return]

    def each(
        self, work: Callable[[Any], Any], some: Sequence[Any], memory: float | None
    ) -> Generator[tuple[Any, Any], None, None]:
        for one in some:
            yield one, work(one)

    def start(self, make: Callable[[], Answers]) -> Asked:
        return Process(make)


class Process:
    def __init__(self, make: Callable[[], Answers]) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=answer, args=(make, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        try:
            self._ours.send(question)
            if not self._ours.poll(seconds):
                raise TimeoutError
            return self._ours.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionError):
            self._process.join()
            raise ConnectionError(f"was lost (code {self._process.exitcode})") from None

    def close(self) -> None:
        self._process.kill()


def answer(make: Callable[[], Answers], connection: Connection) -> None:
    answers = make()
    while True:
        connection.send(answers(connection.recv()))


class Crowded(Nearby):
    """No processes, but whoever asks; there is room for so many of them at a time."""

    room: ClassVar[int]
    there: ClassVar[list[Local]]
    most: ClassVar[int]
    """As many have been there at once."""
    losses: ClassVar[int]
    """So many are lost over a question, and their room with them."""
    sound: ClassVar[int]
    """Whoever comes where so many are there is lost as it begins."""
    asked: ClassVar[list[Mapping[str, Any]]]

    @classmethod
    def opens(cls, room: int, losses: int = 0, sound: int = 100) -> None:
        cls.room, cls.losses, cls.sound, cls.most, cls.there, cls.asked = room, losses, sound, 0, [], []

    def start(self, make: Callable[[], Answers]) -> Asked:
        return Local(make)


class Local:
    """One of them; it is there once there is room."""

    lock = threading.Lock()

    def __init__(self, make: Callable[[], Answers]) -> None:
        self._make, self._answers = make, None
        self._closed = False

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while not self._comes():
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(0.01)
        with self.lock:
            if "groups" in question:
                Crowded.asked.append(question)
                if Crowded.losses:
                    Crowded.losses, Crowded.room = Crowded.losses - 1, Crowded.room - 1
                    Crowded.there.remove(self)
                    raise ConnectionError("was lost")
            if self._answers is None:
                self._answers = self._make()
        return self._answers(question)

    def _comes(self) -> bool:
        with self.lock:
            if self._closed:
                raise ConnectionError("was closed")
            if self not in Crowded.there and len(Crowded.there) >= Crowded.sound:
                raise ConnectionError("was lost as it began")
            if self not in Crowded.there and len(Crowded.there) < Crowded.room:
                Crowded.there.append(self)
                Crowded.most = max(Crowded.most, len(Crowded.there))
            return self in Crowded.there

    def close(self) -> None:
        with self.lock:
            self._closed = True
            if self in Crowded.there:
                Crowded.there.remove(self)
