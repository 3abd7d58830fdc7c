"""A tracker: an observer that sends a run elsewhere, from a process of its own.

Whatever goes wrong there ends and slows no run, and what it prints, seeds or changes is not the run's.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rlalign.data.settings import Options
from rlalign.errors import ConfigError, describe_error, hide
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl

if TYPE_CHECKING:
    from rlalign.interface.run import Run

WAITING = 2**26
"""Bytes that wait for a tracker which takes nothing; what comes then is left out."""
TAIL = 2**22
"""Bytes of samples.jsonl, from its end, that an evaluation's samples are looked for in."""
_SERVE = "from rlalign.interface.tracker import serve; serve()"


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker begins to follow, or follows again."""

    id: str
    """The same for a run that is resumed."""
    name: str
    folder: str
    pipeline: Mapping[str, Any]
    """What `pipeline.yaml` says; what came from the environment as `${oc.env:…}`."""
    tick: int
    """Iterations that were done before."""


class Tracker(Component):
    """Base of trackers: `begin`, `log`, `show` and `end` are called in a process of its own."""

    class Config(Options):
        """What all trackers may be told."""

        project: str = Field("rlalign", description="the project there")
        name: str | None = Field(None, description="the run's name there; null: its folder's")
        tags: list[str] = Field([], description="tags of the run there")
        samples: int = Field(8, ge=0, le=1000, description="samples of each evaluation to show; 0: none")
        patience: float = Field(
            60.0, gt=0, le=3600, description="seconds that the end of the run waits for what is not sent yet"
        )

    config: Config
    requires: ClassVar[str] = ""
    """The module that it cannot do without."""
    keys: ClassVar[Sequence[str]] = ()
    """Variables of the environment that hold secrets: no message says them."""

    def begin(self, run: Tracked) -> None:
        """Begin to follow a run, or go on."""
        raise NotImplementedError

    def log(self, figures: Mapping[str, float], tick: int) -> None:
        """An iteration's figures, or those of an evaluation, after so many iterations."""

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], tick: int) -> None:
        """Samples of an evaluation as a table: texts, and a number for each score (None where a row has none)."""

    def end(self, error: str | None) -> None:
        """The run is over; `error` says why, unless it is finished."""

    # -- in the run's process ------------------------------------------------------------------------------

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._id = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting, self._heard = bytearray(), bytearray()
        self._told = self._over = False

    def setup(self, run: Run) -> None:
        for key in self.keys:
            hide(os.environ.get(key, ""), f"${key}")
        if (library := self.requires) and find_spec(library) is None:
            raise ConfigError(f"`{self.name}` needs {library}, which is not installed: pip install {library}")

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._id = str(state["id"])

    @hookimpl
    def iteration_done(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._send(run, "log", dict(metrics), run.tick)

    @hookimpl
    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._send(run, "log", dict(metrics), run.tick)
        if samples := _samples(run, self.config.samples):
            self._send(run, "show", *_table(samples), run.tick)

    @hookimpl
    def run_ended(self, run: Run, error: Exception | None) -> None:
        patience = self.config.patience
        self._send(run, "end", None if error is None else describe_error(error))
        process, until = self._process, time.monotonic() + patience
        if process is None or process.stdout is None:
            return
        while not self._over and (left := until - time.monotonic()) > 0:
            self._exchange()
            with selectors.DefaultSelector() as pipes:  # `select` takes no file above the first 1,024
                pipes.register(process.stdout, selectors.EVENT_READ)
                if self._waiting and process.stdin is not None:
                    pipes.register(process.stdin, selectors.EVENT_WRITE)
                pipes.select(min(left, 1.0))
        if not self._over:
            self._tell(run, f"was not done {patience:g} s after the run; what it had not sent is lost")
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0 if self._over else 0.0)
        process.kill()
        process.wait()
        self._hear(run)

    def _send(self, run: Run, what: str, *given: Any) -> None:
        """Have the other process do this some time; returns at once."""
        if self._process is None:
            self._process = self._begun(run)
        if len(self._waiting) < WAITING and not self._over:
            self._waiting += json.dumps([what, *given]).encode() + b"\n"
        self._exchange()
        self._hear(run)

    def _begun(self, run: Run) -> subprocess.Popen[bytes]:
        cls = type(self)
        name = self.config.name or run.folder.name
        about = Tracked(self._id, name, str(run.folder.absolute()), run.pipeline, run.tick)
        home = getattr(sys.modules[cls.__module__], "__file__", None)
        asked = {
            "path": [*sys.path, *([str(Path(home).parent)] if home else [])],
            "class": [cls.__module__, cls.__qualname__],
            "options": self.config.model_dump(mode="json"),
            "run": asdict(about),
        }
        self._waiting += json.dumps(asked).encode() + b"\n"
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        begun = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE],
            stdin=pipe,
            stdout=pipe,
            stderr=nothing,
            start_new_session=True,
        )
        for end in (begun.stdin, begun.stdout):
            assert end is not None
            os.set_blocking(end.fileno(), False)
        return begun

    def _exchange(self) -> None:
        """Write and read what can be without waiting."""
        process = self._process
        if self._over or process is None or process.stdin is None or process.stdout is None:
            return
        try:
            while self._waiting and (written := os.write(process.stdin.fileno(), self._waiting[: 2**16])):
                del self._waiting[:written]
        except BlockingIOError:
            pass
        except OSError:  # it has ended
            self._waiting.clear()
        with suppress(BlockingIOError):
            while not self._over:
                read = os.read(process.stdout.fileno(), 2**16)
                self._heard += read
                self._over = not read

    def _hear(self, run: Run) -> None:
        faults = bytes(self._heard).decode(errors="replace").splitlines()
        if faults:
            self._tell(run, faults[0])
        elif self._over and self._process is not None and self._process.poll() not in (None, 0):
            self._tell(run, f"its process ended with {self._process.returncode}")

    def _tell(self, run: Run, fault: str) -> None:
        if not self._told:
            self._told = True
            run.note(f"`{self.name}`: {fault}; the run goes on, and no more is said of it")


def _samples(run: Run, count: int) -> list[dict[str, Any]]:
    """The rows of samples.jsonl of the evaluation that is just over."""
    file = run.folder / "samples.jsonl"
    if not count or not file.is_file():
        return []
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL))
        lines = opened.read().splitlines()
    here = {"phase": run.phase, "iteration": run.iteration, "repeat": run.repeat}
    found = []
    for line in lines:
        with suppress(ValueError):  # the first one may be cut
            row = json.loads(line)
            if all(row.get(key, 0) == value for key, value in here.items()):
                found.append(row)
    return found[:count]


def _table(samples: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    names = list(dict.fromkeys(name for row in samples for name in row["scores"]))
    texts = ["prompt", "transcript" if "transcript" in samples[0] else "response"]
    rows = [
        [*(_text(row.get(key)) for key in texts), *(row["scores"].get(name) for name in names)]
        for row in samples
    ]
    return [*texts, *(f"scores/{name}" for name in names)], rows


def _text(said: Any) -> str:
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


# -- in the process of its own -----------------------------------------------------------------------------


def serve() -> None:
    """Do what the run's process says, until it says that the run is over, or is gone."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what is printed goes nowhere
    asked = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = asked["path"]
    try:
        module, name = asked["class"]
        cls: type[Tracker] = reduce(getattr, name.split("."), import_module(module))  # type: ignore[assignment]
        tracker = cls(cls.Config.model_validate(asked["options"]))
        tracker.begin(Tracked(**asked["run"]))
    except Exception as error:
        _answer(answers, f"could not begin: {describe_error(error)}")
        return
    ended = False
    for line in sys.stdin.buffer:
        what, *given = json.loads(line)
        ended = what == "end"
        try:
            getattr(tracker, what)(*given)
        except Exception as error:
            _answer(answers, f"`{what}`: {describe_error(error)}")
        if ended:
            break
    if not ended:
        tracker.end("the run's process is gone")


def _answer(to: int, fault: str) -> None:
    with suppress(OSError):  # nobody may be there any more
        os.write(to, f"{' '.join(fault.split())}\n".encode())
