"""What a person sees of a run: a live panel on a terminal, or a line an iteration in logs and CI."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rlalign.errors import shown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STAGES = ("rollout", "reward", "advantage", "update", "evaluate", "save")


class Display(Protocol):
    """What the loop tells; `iteration` counts from 1, and comes when the iteration is done."""

    def started(self, run_name: str, folder: Path, phases: Sequence[str]) -> None: ...
    def phase(self, name: str, iterations: int) -> None: ...
    def iteration(self, i: int, metrics: Mapping[str, float]) -> None: ...
    def evaluated(self, metrics: Mapping[str, float]) -> None: ...
    def saved(self, path: Path) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, summary: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


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


class Pace:
    """How far a phase is, and how long the rest takes at the pace of its last iterations."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.start("", 0)

    def start(self, name: str, iterations: int) -> None:
        self.name, self.iterations, self.done = name, iterations, 0
        self._last = self._clock()
        self._mean: float | None = None

    def step(self, i: int) -> None:
        now = self._clock()
        took, self._last, self.done = now - self._last, now, i
        self._mean = took if self._mean is None else 0.8 * self._mean + 0.2 * took

    @property
    def remaining(self) -> float | None:
        """Seconds to the end of the phase, evaluations and checkpoints included."""
        return None if self._mean is None else self._mean * max(self.iterations - self.done, 0)

    @property
    def share(self) -> str:
        return f"{self.done}/{self.iterations}"


class PlainDisplay:
    """One line an iteration, at most one a second. Checkpoints are not worth one."""

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

    def started(self, run_name: str, folder: Path, phases: Sequence[str]) -> None:
        self._say(f"run {run_name} in {folder}: {', '.join(phases)}")

    def phase(self, name: str, iterations: int) -> None:
        self._pace.start(name, iterations)
        self._say(f"{name}: {iterations} iterations")

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self._pace.step(i)
        line = "  ".join([self._pace.name, self._pace.share, *_facts(metrics, self._pace.remaining)])
        if i >= self._pace.iterations or self._clock() - self._shown >= self._interval:
            self._held_back = None
            self._say(line)
        else:
            self._held_back = line

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self._say(f"{self._pace.name}  {self._pace.share}  evaluation: {_evaluation(metrics)}")

    def saved(self, path: Path) -> None:
        pass

    def note(self, text: str) -> None:
        self._say(text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._say("finished")
        for name, value in summary.items():
            self._say(f"  {name}: {_number(value)}")

    def close(self) -> None:
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
        print(shown(line), file=self._stream or sys.stdout, flush=True)


class NoDisplay(PlainDisplay):
    """Shows nothing."""

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
        self._saved: Path | None = None
        self._live = Live(console=self._console, get_renderable=self._panel, refresh_per_second=4)

    def started(self, run_name: str, folder: Path, phases: Sequence[str]) -> None:
        self._title = f"{run_name} · {folder}"
        self._phases = phases
        self._live.start()

    def phase(self, name: str, iterations: int) -> None:
        self._pace.start(name, iterations)
        self._metrics = {}

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self._pace.step(i)
        self._metrics = dict(metrics)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self._evaluation = f"{self._pace.share}: {_evaluation(metrics)}"

    def saved(self, path: Path) -> None:
        self._saved = path

    def note(self, text: str) -> None:
        self._console.print(shown(text), markup=False, highlight=False)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.close()
        for name, value in summary.items():
            self._console.print(shown(f"{name}: {_number(value)}"), markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        pace, metrics = self._pace, self._metrics
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(pace.iterations, 1), completed=pace.done, width=30)
        eta = "" if pace.remaining is None else f"{_duration(pace.remaining)} left"
        head.add_row(Text(shown(self._where())), Text(pace.share), bar, Text(eta))
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim")
        for name, value in self._rows(metrics):
            body.add_row(Text(name), Text(shown(value)))
        return Panel(Group(head, body), title=Text(shown(self._title)), title_align="left")

    def _where(self) -> str:
        """The phase, and which of how many if there are several."""
        name = self._pace.name
        if len(self._phases) < 2 or name not in self._phases:
            return name
        return f"{name} ({self._phases.index(name) + 1} of {len(self._phases)})"

    def _rows(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        names = {"loss": "loss", "grad_norm": "gradient norm", "lr": "learning rate"}
        responses = [f"{name} {_number(metrics[name])}" for name in ("length", "finished") if name in metrics]
        stages = [(stage, metrics[f"time/{stage}"]) for stage in STAGES if f"time/{stage}" in metrics]
        rows = [
            ("reward", _reward(metrics)),
            ("KL", _kl(metrics)),
            *((shown, _number(metrics[name])) for name, shown in names.items() if name in metrics),
            ("responses", " · ".join(responses)),
            ("speed", _speed(metrics)),
            ("time", " · ".join(f"{stage} {_duration(took)}" for stage, took in stages)),
            ("evaluation", self._evaluation),
            ("checkpoint", self._saved.name if self._saved else ""),
        ]
        return [(name, value) for name, value in rows if value]


def _facts(metrics: Mapping[str, float], remaining: float | None) -> list[str]:
    """An iteration in a line: what is missing from the metrics is left out."""
    facts = [
        ("reward", _reward(metrics)),
        ("kl", _kl(metrics)),
        ("loss", _number(metrics["loss"]) if "loss" in metrics else ""),
        ("", _speed(metrics)),
        ("", f"{_duration(metrics['time/iteration'])} each" if "time/iteration" in metrics else ""),
        ("", "" if remaining is None else f"{_duration(remaining)} left"),
    ]
    return [f"{name} {value}".strip() for name, value in facts if value]


def _reward(metrics: Mapping[str, float]) -> str:
    """The total, and the parts where there is more than one: `0.71 (classifier 0.8, kl -0.09)`."""
    if "reward/total" not in metrics:
        return ""
    total = _number(metrics["reward/total"])
    parts = {name.removeprefix("reward/"): x for name, x in metrics.items() if name.startswith("reward/")}
    del parts["total"]
    if len(parts) < 2:
        return total
    return f"{total} ({', '.join(f'{name} {_number(x)}' for name, x in parts.items())})"


def _kl(metrics: Mapping[str, float]) -> str:
    """The first metric of a component named kl, or of any component that calls one so."""
    named = [name for name in metrics if name.startswith("kl/")]
    called = [name for name in metrics if name.endswith("/kl") and not name.startswith("reward/")]
    return next((_number(metrics[name]) for name in named + called), "")


def _speed(metrics: Mapping[str, float]) -> str:
    took = metrics.get("time/iteration", 0.0)
    return f"{metrics['tokens'] / took:,.0f} tokens/s" if "tokens" in metrics and took > 0 else ""


def _evaluation(metrics: Mapping[str, float]) -> str:
    """What was scored and measured, then what the texts are like; the counts are in the log."""
    named = {name.removeprefix("eval/"): x for name, x in metrics.items() if not name.startswith("time/")}
    general = ("responses", "tokens", "length", "finished")
    shown = {name: x for name, x in named.items() if name not in general}
    shown |= {name: named[name] for name in general[2:] if name in named}
    return " · ".join(f"{name} {_number(x)}" for name, x in shown.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"
