"""Many requests at one time, in threads that nobody waits for once one has failed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

X = TypeVar("X")
Y = TypeVar("Y")


def each(
    work: Callable[[X], Y], some: Sequence[X], most: int, done: SimpleQueue[tuple[int, Y] | BaseException]
) -> Iterator[tuple[int, Y]]:
    """The place of each and what `work` makes of it, as they come, so many at a time; the first error is raised.

    All pass through `done`: whoever puts an error there ends it. The threads of an executor would keep the process from
    ending until the last request is answered.
    """
    left = deque(enumerate(some))

    def go_on() -> None:
        while True:
            try:
                place, one = left.popleft()
            except IndexError:
                return
            try:
                done.put((place, work(one)))
            except BaseException as error:
                done.put(error)

    for _ in range(min(most, len(some))):
        threading.Thread(target=go_on, name="asks-vllm", daemon=True).start()
    try:
        for _ in some:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        left.clear()
