"""What is told of a run while it goes on, and how it is asked to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rlalign.errors import ComponentError, describe_error
from rlalign.running.display import Display
from rlalign.running.members import culprit, who
from rlalign.running.printed import uncut
from rlalign.world.ranks import here

if TYPE_CHECKING:
    from rlalign.running.loop import Session

AT_ONCE = "stopped at once; the last checkpoint stands"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST = 2.0
"""Seconds in which signals are one request: who ends a group of processes reaches some twice, by torchrun as well."""


@dataclass(frozen=True)
class Callbacks:
    """Functions to call while a run goes on. They watch it: what changes a run is a component of its pipeline.

    Rows are lines of metrics.jsonl. What a function raises ends the run, which can be resumed from its last checkpoint.
    """

    on_start: Callable[[Path], object] | None = None
    """Gets the run's folder."""
    on_phase: Callable[[str, int], object] | None = None
    """Gets the name of a phase that begins, and its number of iterations."""
    on_iteration: Callable[[dict[str, Any]], object] | None = None
    """Gets the row of an iteration."""
    on_evaluation: Callable[[dict[str, Any]], object] | None = None
    """Gets the row of an evaluation."""
    on_checkpoint: Callable[[Path], object] | None = None
    """Gets the folder of a checkpoint, once it is whole: after the next iteration as a rule."""
    on_note: Callable[[str], object] | None = None
    """Gets a line for whoever watches: what was left out, and why."""
    on_finish: Callable[[Path], object] | None = None
    """Gets the run's folder, which then holds the model."""


class Watch:
    """A display that also calls functions."""

    def __init__(self, shown: Display, callbacks: Sequence[Callbacks]) -> None:
        self._shown = shown
        self._callbacks = callbacks
        self.session: Session | None = None

    def stage(self, name: str) -> None:
        self._shown.stage(name)

    def piece(self, what: str, done: int, of: int) -> None:
        self._shown.piece(what, done, of)

    def started(self, run_name: str, folder: Path, phases: Sequence[str]) -> None:
        self._shown.started(run_name, folder, phases)
        self._call("on_start", folder)

    def phase(self, name: str, iterations: int) -> None:
        self._shown.phase(name, iterations)
        self._call("on_phase", name, iterations)

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self._shown.iteration(i, metrics)
        self._call("on_iteration", self._row(metrics))

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self._shown.evaluated(metrics)
        self._call("on_evaluation", self._row(metrics))

    def sample(self, row: Mapping[str, Any]) -> None:
        self._shown.sample(row)

    def saved(self, path: Path) -> None:
        self._shown.saved(path)
        self._call("on_checkpoint", path)

    def note(self, text: str) -> None:
        self._shown.note(text)
        self._call("on_note", text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._shown.finished(summary)
        self._call("on_finish", Path(summary["folder"]))

    def close(self) -> None:
        self._shown.close()

    def _call(self, name: str, *given: Any) -> None:
        for each in self._callbacks:
            function = getattr(each, name)
            if function is not None:
                function(*given)

    def _row(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        assert self.session is not None
        phase = self.session.phase
        return {**phase.where, "step": phase.step, **metrics}


def _raised_by(session: Session, error: KeyboardInterrupt) -> ComponentError:
    """The error for code of the run that raises what Ctrl-C raises."""
    guilty = culprit(error, session.phase.plan.members) if hasattr(session, "phase") else None
    what = who(guilty) if guilty else "code that the run called"
    return ComponentError(
        f"{what} raised {describe_error(error)}, and nobody pressed Ctrl-C; to end a phase, call "
        "`run.finish_phase`. The last checkpoint stands"
    )


@contextmanager
def stoppable(session: Session) -> Iterator[None]:
    """Ctrl-C, SIGTERM or SIGUSR1 ends the run after its iteration, with a checkpoint; a second one at once, unless it
    comes with the first.

    Python lets only the main thread say so: in another one they do what they did before.
    """
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not session.stopping:
            session.stopping = True
            session.display.note("stopping after this iteration; once more to stop at once")
        now = time.monotonic()
        if number == signal.SIGUSR1:  # a scheduler's warning: what comes after it is the first request
            return
        if not first:
            first.append(now)
        elif now - first[0] < SAME_REQUEST:
            return
        elif number == signal.SIGINT:
            raise KeyboardInterrupt(AT_ONCE)
        else:
            if here().leads:
                told = uncut(sys.stderr)
                told.write(f"\n{AT_ONCE}\n")
                told.flush()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    except KeyboardInterrupt as error:
        if AT_ONCE not in error.args:  # nobody's Ctrl-C: that one sets `stopping`
            raise _raised_by(session, error) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
