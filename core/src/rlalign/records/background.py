"""One piece of work at a time, done in a thread while the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A thread for work that must be over before the next of its kind begins: nothing ever queues up.

    What goes wrong in it is raised where its result is asked for, once.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._work: Future[T] | None = None
        self.took = 0.0
        """Seconds that the last piece of work took."""

    @property
    def busy(self) -> bool:
        return self._work is not None and not self._work.done()

    def start(self, work: Callable[[], T]) -> None:
        """Begin; the result of the work before must have been asked for."""
        assert self._work is None, "the work before is not finished"
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._work = self._pool.submit(self._timed, work)

    def _timed(self, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.took = time.perf_counter() - started

    def result(self) -> T | None:
        """What the work gave, once it is over; None where there is none whose result nobody has."""
        if self._work is None:
            return None
        try:
            found = self._work.result()
        except KeyboardInterrupt:  # of whoever waits here: the work goes on
            raise
        except BaseException:
            self._work = None
            raise
        self._work = None
        return found

    def close(self) -> None:
        """End the thread, after its work."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
