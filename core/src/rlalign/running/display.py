"""What a person sees of a run: a live panel on a terminal, or a line an iteration in logs and CI."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rlalign.errors import shown
from rlalign.running import figures
from rlalign.running.pace import Pace
from rlalign.running.printed import uncut

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

QUIET = 30.0
"""Seconds without a line after which plain lines say what goes on."""
SAMPLE = 160
"""Characters of a sample in a plain line."""
ECHO = 6
"""Columns left free beside the panel: what a terminal echoes there, `^C`, moves no line of it."""


class Display(Protocol):
    """What the loop tells; `iteration` counts from 1, and comes when the iteration is done."""

    def stage(self, name: str) -> None: ...
    def piece(self, what: str, done: int, of: int) -> None: ...
    def started(self, run_name: str, folder: Path, phases: Sequence[str]) -> None: ...
    def phase(self, name: str, iterations: int) -> None: ...
    def iteration(self, i: int, metrics: Mapping[str, float]) -> None: ...
    def evaluated(self, metrics: Mapping[str, float]) -> None: ...
    def sample(self, row: Mapping[str, Any]) -> None: ...
    def saved(self, path: Path) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, summary: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


@contextmanager
def closed_on_failure(display: Display) -> Iterator[None]:
    """Leave a clean screen to the message of whatever goes wrong."""
    try:
        yield
    except BaseException:
        display.close()
        raise


def make_display(plain: bool | None = None) -> Display:
    """The live display in a terminal that can move its cursor and in a notebook that can redraw, unless told."""
    if plain is None:
        plain = not (_moves_cursor() or _redraws())
    return PlainDisplay() if plain else LiveDisplay()


def _moves_cursor() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def _redraws() -> bool:
    """Whether this is a notebook with the widgets that rich draws in; in others, lines."""
    if "ipykernel" not in sys.modules or find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter


class PlainDisplay:
    """One line an iteration, at most one a second, and one now and then where an iteration takes long."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._pace = Pace(clock)
        self._shown = float("-inf")
        self._held_back: str | None = None
        self._closed: threading.Event | None = None

    def stage(self, name: str) -> None:
        self._pace.stage(name)
        if self._closed is None:
            self._closed = threading.Event()
            self._say(f"{name} …")
            threading.Thread(target=self._watch, args=(self._closed,), daemon=True).start()

    def piece(self, what: str, done: int, of: int) -> None:
        self._pace.piece(what, done, of)

    def _watch(self, closed: threading.Event) -> None:
        while not closed.wait(1.0):
            self.break_silence()

    def break_silence(self) -> None:
        """Say what goes on, where nothing was said for long."""
        pace = self._pace
        if pace.now and self._clock() - self._shown >= QUIET:
            where = [pace.name, pace.share] if pace.name else []
            self._print("  ".join([*where, pace.now, f"for {figures.duration(pace.staying)}"]))

    def started(self, run_name: str, folder: Path, phases: Sequence[str]) -> None:
        self._say(f"run {run_name} in {folder}: {', '.join(phases)}")

    def phase(self, name: str, iterations: int) -> None:
        self._pace.start(name, iterations)
        self._say(f"{name}: {iterations} iterations")

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self._pace.step(i, metrics)
        said = [f"{name} {x}" for name, x in {**figures.of_iteration(metrics), **self._pace.trend}.items()]
        took = f"{figures.duration(metrics['time/iteration'])} each" if "time/iteration" in metrics else ""
        slow = figures.slow_reward(metrics)
        ends = [f"{took} ({slow})" if took and slow else took, self._pace.left]
        line = "  ".join([self._pace.name, self._pace.share, *said, *filter(None, ends)])
        if i >= self._pace.iterations or self._clock() - self._shown >= self._interval:
            self._held_back = None
            self._say(line)
        else:
            self._held_back = line

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        said = " · ".join(f"{name} {x}" for name, x in self._pace.evaluated(metrics).items())
        self._say(f"{self._pace.name}  {self._pace.share}  evaluation: {said}")

    def sample(self, row: Mapping[str, Any]) -> None:
        self._say(f"{self._pace.name}  {self._pace.share}  sample: {figures.sample(row, SAMPLE)}")

    def saved(self, path: Path) -> None:
        pass

    def note(self, text: str) -> None:
        self._say(text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._say("finished")
        for name, value in summary.items():
            self._say(f"  {name}: {figures.number(value)}")

    def close(self) -> None:
        if self._closed is not None:
            self._closed.set()
        self._catch_up()

    def _catch_up(self) -> None:
        """Print the iteration that came too soon after another, so that the last one always shows."""
        line, self._held_back = self._held_back, None
        if line is not None:
            self._print(line)

    def _say(self, line: str) -> None:
        self._catch_up()
        self._print(line)

    def _print(self, line: str) -> None:
        self._shown = self._clock()
        # Looked up late: whoever redirects standard output gets the lines.
        print(f"{shown(line)}\n", end="", file=self._stream or uncut(sys.stdout), flush=True)


class NoDisplay(PlainDisplay):
    """Shows nothing."""

    def stage(self, name: str) -> None:
        pass

    def _print(self, line: str) -> None:
        pass


class LiveDisplay:
    """A panel that rich redraws in place. Notes, and whatever else is printed, scroll by above it."""

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console()
        self._pace = Pace(clock)
        self._title = ""
        self._phases: Sequence[str] = ()
        self._metrics: Mapping[str, float] = {}
        self._evaluation = ""
        self._sample: Mapping[str, Any] | None = None
        self._saved: Path | None = None
        # Transient until there is a run: what is refused before leaves its message and nothing else.
        self._live = Live(
            console=self._console, get_renderable=self._seen, refresh_per_second=4, transient=True
        )

    def stage(self, name: str) -> None:
        self._pace.stage(name)
        self._live.start(refresh=True)

    def piece(self, what: str, done: int, of: int) -> None:
        self._pace.piece(what, done, of)

    def started(self, run_name: str, folder: Path, phases: Sequence[str]) -> None:
        self._title = f"{run_name} · {folder}"
        self._phases = phases
        self._live.transient = False
        self._live.start(refresh=True)

    def phase(self, name: str, iterations: int) -> None:
        self._pace.start(name, iterations)
        self._metrics, self._evaluation, self._sample = {}, "", None

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self._pace.step(i, metrics)
        self._metrics = dict(metrics)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        said = " · ".join(f"{name} {x}" for name, x in self._pace.evaluated(metrics).items())
        self._evaluation = f"{self._pace.share}: {said}"

    def sample(self, row: Mapping[str, Any]) -> None:
        self._sample = row

    def saved(self, path: Path) -> None:
        self._saved = path

    def note(self, text: str) -> None:
        self._console.print(shown(text), markup=False, highlight=False)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.close()
        for name, value in summary.items():
            self._console.print(shown(f"{name}: {figures.number(value)}"), markup=False, highlight=False)

    def close(self) -> None:
        self._pace.stage("")
        self._live.stop()

    def _seen(self) -> RenderableType:
        """The panel; before there is a run, a line that moves."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        pace = self._pace
        going = f"{pace.now}  {figures.duration(pace.staying)}" if pace.now else ""
        doing = Text(shown(f"{'◐◓◑◒'[int(4 * pace.staying) % 4]} {going}" if going else ""), style="dim")
        if not self._title:
            return doing
        head = Table.grid(padding=(0, 2))
        if pace.iterations:
            bar = ProgressBar(total=pace.iterations, completed=pace.done, width=30)
            head.add_row(Text(shown(self._where())), Text(pace.share), bar, Text(pace.left))
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim")
        for name, value in self._rows():
            body.add_row(Text(name), Text(shown(value)))
        parts: list[RenderableType] = [
            *([head] if pace.iterations else []),
            *([doing] if going else []),
            body,
        ]
        width = max(40, min(self._console.width - ECHO, 140))
        return Panel(Group(*parts), title=Text(shown(self._title)), title_align="left", width=width)

    def _where(self) -> str:
        """The phase, and which of how many if there are several."""
        name = self._pace.name
        if len(self._phases) < 2 or name not in self._phases:
            return name
        return f"{name} ({self._phases.index(name) + 1} of {len(self._phases)})"

    def _rows(self) -> list[tuple[str, str]]:
        metrics = self._metrics
        times = [figures.speed(metrics), figures.times(metrics), figures.slow_reward(metrics)]
        rows = {
            **figures.of_iteration(metrics),
            **self._pace.trend,
            "time": " · ".join(filter(None, times)),
            "evaluation": self._evaluation,
            "sample": figures.sample(self._sample, 2 * SAMPLE) if self._sample else "",
            "checkpoint": self._saved.name if self._saved else "",
        }
        return [(name, value) for name, value in rows.items() if value]
