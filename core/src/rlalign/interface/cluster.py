"""Machines that somebody else hands out: what `--on`, `--jobs` and `isolate: {cluster: …}` name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from rlalign.data.settings import Options

X = TypeVar("X")
Y = TypeVar("Y")
Answers = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Answers questions; both are what JSON can say."""


class Asked(Protocol):
    """A process elsewhere that answers questions."""

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer. TimeoutError after so long; ConnectionError, with what happened, where it is gone."""
        ...

    def close(self) -> None:
        """End it, whatever it is doing."""
        ...


class Cluster(ABC):
    """Found by its name among the entry points `rlalign.clusters`. `__init__` opens nothing.

    All its machines have the same packages, and see the folder that this process works in: there, what is begun
    elsewhere begins.
    """

    class Config(Options):
        """No options."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def launch(self, processes: int, first: Sequence[str], again: Sequence[str]) -> int:
        """Run `rlalign FIRST` in so many processes that find each other by torchrun's environment; the exit code.

        A process that is started again runs `rlalign AGAIN`.
        """

    @abstractmethod
    def each(
        self, work: Callable[[X], Y], some: Sequence[X], memory: float | None
    ) -> Generator[tuple[X, Y | Exception], None, None]:
        """Each with what `work` makes of it, or why there is nothing, as they come; one may use so many gigabytes."""

    @abstractmethod
    def start(self, make: Callable[[], Answers]) -> Asked:
        """Begin a process that answers by what is made there; returns at once."""
