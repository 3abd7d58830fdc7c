"""A cluster that is this machine: each process begun by Python itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
