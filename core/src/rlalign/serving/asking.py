"""Threads that ask, and several processes asked at once for parts of a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from rlalign.config.pipeline import Isolate
from rlalign.serving.client import Client
from rlalign.serving.host import Recipe
from rlalign.serving.questions import Group

T = TypeVar("T")
_Work = tuple[Future[Any], Callable[[], Any]]
PARTS = 4
"""Parts of a batch for each process: whoever is done with one takes the next."""


class Pool:
    """Several processes of one served reward. It is asked as a `Client` is."""

    def __init__(self, recipe: Recipe, isolate: Isolate, place: str = "") -> None:
        self._clients = [Client(recipe, isolate, place) for _ in range(isolate.workers)]
        self._askers = [Asker(f"asks-{recipe.name}-{i}") for i in range(isolate.workers)]

    @property
    def log(self) -> Path | None:
        """Where what its processes print is kept."""
        return self._clients[0].log

    @log.setter
    def log(self, path: Path | None) -> None:
        for client in self._clients:
            client.log = path

    def begin(self) -> None:
        """Have all ready."""
        self._all(Client.begin)

    def scores(
        self, groups: Sequence[Group], where: dict[str, Any], keys: Sequence[str]
    ) -> list[dict[str, Any]]:
        """What they say of each group."""
        count = min(len(groups), PARTS * len(self._clients))
        ends = [i * len(groups) // count for i in range(count + 1)]
        waiting: SimpleQueue[slice] = SimpleQueue()
        for start, end in pairwise(ends):
            waiting.put(slice(start, end))

        def some(client: Client) -> dict[int, list[dict[str, Any]]]:
            found = {}
            with suppress(Empty):
                while True:
                    part = waiting.get_nowait()
                    found[part.start] = client.scores(groups[part], where, keys[part])
            return found

        found = {start: scores for one in self._all(some) for start, scores in one.items()}
        return [each for start in sorted(found) for each in found[start]]

    def metrics(self, groups: Sequence[Group], where: dict[str, Any], key: str) -> dict[str, Any]:
        """What one of them measures of all groups together."""
        return self._askers[0].submit(partial(self._clients[0].metrics, groups, where, key)).result()

    def close(self) -> None:
        """End them all."""
        for client, asker in zip(self._clients, self._askers, strict=True):
            client.close()
            asker.end()

    def _all(self, do: Callable[[Client], T]) -> list[T]:
        """What each has done; all of them have ended with it."""
        asked = [
            asker.submit(partial(do, client))
            for client, asker in zip(self._clients, self._askers, strict=True)
        ]
        wait(asked)
        return [one.result() for one in asked]


class Asker:
    """Does one thing after the other in a thread that keeps no program from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        if self._ended:  # what is asked for says by itself that it is over
            _do((future, work))
            return future
        if self._thread is None:
            target, given = _work, (self._waiting,)
            self._thread = threading.Thread(target=target, args=given, name=self._name, daemon=True)
            self._thread.start()
        self._waiting.put((future, work))
        return future

    def end(self) -> None:
        """End the thread once it has done what waits."""
        self._ended = True
        self._waiting.put(None)


def _work(waiting: SimpleQueue[_Work | None]) -> None:
    while (item := waiting.get()) is not None:
        _do(item)
        del item


def _do(item: _Work) -> None:
    future, work = item
    try:
        future.set_result(work())
    except BaseException as error:  # whoever collects the answer is told
        future.set_exception(error)
