"""Threads that ask, and several processes asked at once for parts of a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from rlalign.config.pipeline import Isolate
from rlalign.errors import ComponentError
from rlalign.serving.client import Client, End, Remote, process
from rlalign.serving.host import Recipe
from rlalign.serving.protocol import Broken
from rlalign.serving.questions import Group, checked

T = TypeVar("T")
_Work = tuple[Future[Any], Callable[[], Any]]
PARTS = 4
"""Parts of a batch for each process that there may be: whoever is done with one takes the next."""
PATIENCE = 1.0
"""Seconds that a part waits before another process is begun for it."""
LONGEST_WAIT = 30.0
"""Seconds before it is asked again, at most."""


@dataclass(eq=False)
class _Part:
    """A question of a batch, on its way to whoever is free."""

    question: dict[str, Any]
    read: Callable[[Mapping[str, Any]], Any]
    unwanted: threading.Event
    """Set once the batch has failed."""
    tries: int = 0
    answer: Future[Any] = field(default_factory=Future)


class Pool:
    """The processes of one served reward, or the server that computes it.

    Each has a thread. It has its process there, and only then takes a part of what waits: one that finds no room
    holds nobody up.
    """

    def __init__(self, recipe: Recipe, isolate: Isolate, place: str = "") -> None:
        self._recipe, self._isolate, self._crew = recipe, isolate, isolate.workers
        self._who = ", ".join(filter(None, (f"`{recipe.name}` {isolate.where}", place)))
        self.log: Path | None = None
        """Where what its processes print is kept."""
        self._members: dict[Client, Future[None]] = {}
        """Those that are there, and those that are on their way."""
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[_Part | None] = SimpleQueue()
        self._closed = threading.Event()

    def begin(self) -> None:
        """Have as many there as there always are, so that what is wrong is told at once."""
        for there in self._have(self._crew.least):
            there.result()

    def scores(
        self, groups: Sequence[Group], where: dict[str, Any], keys: Sequence[str]
    ) -> list[dict[str, Any]]:
        """What they say of each group; the keys tell the groups apart.

        How a batch is cut follows from how many there may be, not from how many there are.
        """
        count = min(len(groups), PARTS * self._crew.most) if self._crew.most > 1 else 1
        ends = [i * len(groups) // count for i in range(count + 1)]
        asked = []
        for start, end in pairwise(ends):
            some = groups[start:end]
            question = {"ask": "reward", "groups": [*some], "where": where, "key": keys[start]}
            asked.append((question, partial(_scores, some)))
        return [each for found in self._all(asked) for each in found]

    def metrics(self, groups: Sequence[Group], where: dict[str, Any], key: str) -> dict[str, Any]:
        """What one of them measures of all groups together: numbers, or "nan", "inf" and "-inf"."""
        question = {"ask": "evaluate", "groups": [*groups], "where": where, "key": key}
        [found] = self._all([(question, _numbers)])
        return dict(found)

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._closed.set()
            members = [*self._members]
        self._waiting.put(None)
        for client in members:
            client.close()

    # -- a batch ------------------------------------------------------------------------------------------

    def _all(self, asked: Sequence[tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]]) -> list[Any]:
        """What is read from the answers; as many processes as there is work for are begun meanwhile."""
        unwanted = threading.Event()
        parts = [_Part(question, read, unwanted) for question, read in asked]
        for part in parts:
            self._waiting.put(part)
        self._have(self._crew.least)
        left = {part.answer for part in parts}
        try:
            while left:
                done, left = wait(left, PATIENCE, FIRST_EXCEPTION)
                for one in done:
                    one.result()
                there = sum(member.done() for member in self._have(0))
                if waiting := self._waiting.qsize():
                    self._have(min(self._crew.most, there + waiting))
        finally:
            unwanted.set()
        return [part.answer.result() for part in parts]

    def _have(self, count: int) -> list[Future[None]]:
        """Begin as many as there are too few; all of them, there or on their way."""
        with self._lock:
            if self._closed.is_set():
                raise self._failed("was ended")
            for i in range(len(self._members), count):
                client = Client(self._who, self._isolate.seconds, self._end)
                there = self._members[client] = Future()
                work, name = partial(self._work, client, there), f"asked-{self._recipe.name}-{i}"
                threading.Thread(target=work, name=name, daemon=True).start()
            return [*self._members.values()]

    def _end(self) -> End:
        if self._isolate.at:
            return Remote(self._isolate.at, self._recipe)
        return process(self._recipe, self._isolate, self.log)

    def _failed(self, said: object, times: int = 1) -> ComponentError:
        often = f" (asked {times} times)" if times > 1 and not self._closed.is_set() else ""
        return ComponentError(f"{self._who}: it {said}{often}")

    # -- the thread of one of them ------------------------------------------------------------------------

    def _work(self, client: Client, there: Future[None]) -> None:
        try:
            while self._there(client):
                if not there.done():
                    there.set_result(None)
                try:
                    part = self._waiting.get(timeout=self._crew.idle)
                except Empty:
                    if self._leaves(client):
                        return
                    continue
                if part is None:  # for all of them
                    self._waiting.put(None)
                elif not part.unwanted.is_set():
                    self._try(client, part)
        except BaseException as error:  # whoever waits is told
            self._lost(client, there, error)
        else:
            if not there.done():
                there.set_exception(self._failed("was ended"))
        finally:
            client.close()

    def _there(self, client: Client) -> bool:
        """Have its process there, in as many tries as a part has; no, where all is over."""
        tries = 0
        while not self._closed.is_set():
            try:
                client.ready()
                return True
            except Broken:
                tries += 1
                if tries > self._isolate.retries:
                    raise
                self._closed.wait(pause(tries))
        return False

    def _leaves(self, client: Client) -> bool:
        """Whether it is given back, as there are enough without it."""
        with self._lock:
            if sum(there.done() for there in self._members.values()) <= self._crew.least:
                return False
            del self._members[client]
            return True

    def _lost(self, client: Client, there: Future[None], error: BaseException) -> None:
        """It cannot be had. Where others are there, they go on without it."""
        with self._lock:
            self._members.pop(client, None)
            others = any(one.done() for one in self._members.values())
        told = self._failed(error, self._isolate.retries + 1) if isinstance(error, Broken) else error
        if not there.done():
            there.set_exception(told)
        with suppress(Empty):
            while not (isinstance(error, Broken) and others):
                if (part := self._waiting.get_nowait()) is not None:
                    part.answer.set_exception(told)

    def _try(self, client: Client, part: _Part) -> None:
        try:
            part.answer.set_result(client.ask(part.question, part.read))
        except Broken as error:
            part.tries += 1
            if part.tries > self._isolate.retries or self._closed.wait(pause(part.tries)):
                part.answer.set_exception(self._failed(error, part.tries))
            else:
                self._waiting.put(part)  # for whoever is free
        except BaseException as error:
            part.answer.set_exception(error)


def pause(tries: int) -> float:
    """Seconds before it is asked again, after so many tries."""
    return min(2.0 ** (tries - 1), LONGEST_WAIT)


def _scores(groups: Sequence[Group], answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return checked(answer.get("answers"), groups)


def _numbers(answer: Mapping[str, Any]) -> dict[str, Any]:
    found = answer.get("metrics")
    if not isinstance(found, dict) or not all(
        type(x) in (int, float) or x in ("nan", "inf", "-inf") for x in found.values()
    ):
        raise ValueError("answered what are no numbers by name")
    return found


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
