"""A reward's own process on this machine, or an environment's: started, watched, limited, ended with the run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rlalign.data.limits import OUTPUT_BYTES, in_words
from rlalign.errors import shown
from rlalign.parents import end_with
from rlalign.serving.answering import answering
from rlalign.serving.host import Recipe, answer_on
from rlalign.serving.protocol import Broken, Channel, Refused, introduce

START_SECONDS = 600.0
"""How long a reward may take to be there: it imports torch, and may load a model."""
LAST_LINES = 12
"""Of what it printed that an error quotes."""
LAST_BYTES = 2**15
"""Of what it printed that are held in memory."""
LONGEST_LINE = 200
"""Characters of one of them."""
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from rlalign.serving.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
_starter = ThreadPoolExecutor(1, "starts-rewards")
"""One thread that lives as long as this process: Linux ends a child with the thread that started it."""


class Child:
    """The process, from this side."""

    def __init__(self, recipe: Recipe, memory: int | None, log: Path | None) -> None:
        self._memory = memory
        self._most = 0
        ours, theirs = socket.socketpair()
        self._output, writer = os.pipe()
        try:
            self._process = _starter.submit(self._start, theirs, writer).result()
        except BaseException:
            ours.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()
            os.close(writer)
        self._printed = Printed(self._output, log)
        self.channel = Channel(ours, self._look)
        self._recipe = recipe

    @staticmethod
    def _start(theirs: socket.socket, writer: int) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C is for the run, which ends its children itself.
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
        )

    def ready(self) -> None:
        """Wait until it is set up. Refused where it says that it cannot be; Broken where it dies of it."""
        introduce(self.channel, None, START_SECONDS)
        threads = self._recipe.threads or torch.get_num_threads()
        self.channel.send({"recipe": asdict(self._recipe), "threads": threads}, START_SECONDS)
        answer = self.channel.receive(START_SECONDS)
        if "error" in answer:
            raise Refused(str(answer["error"]))

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        return self.channel.ask(question, seconds)

    def _look(self) -> None:
        """Whether it is worth waiting for."""
        if self._process.poll() is not None:
            raise Broken(self.how_it_ended())
        if self._memory is not None and (held := memory_of(self._process.pid)) > self._memory:
            raise Broken(
                f"took {in_words(held)} of memory, more than `memory: {in_words(self._memory)}`, and was ended"
            )

    def how_it_ended(self) -> str:
        """In words that follow its name; once the connection is closed, its end is awaited."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1.0)
            if code < 0:
                return f"was killed by {signal.Signals(-code).name}"
            return f"ended its process with code {code}"
        return "closed the connection, and its process goes on"

    def last_words(self) -> str:
        """The end of what it printed."""
        return self._printed.last_lines()

    def close(self) -> None:
        """End it, and what it started in its session."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.channel.close()
        self._printed.join()


class Printed(threading.Thread):
    """What a process prints: read as it comes, so that it never waits, kept in a file as far as there is room."""

    def __init__(self, source: int, log: Path | None) -> None:
        super().__init__(name="reads-what-a-reward-prints", daemon=True)
        self._source = source
        self._log = log
        self._last = b""
        """The end of it: a crash is told in many small pieces."""
        self.start()

    def run(self) -> None:
        file, size = None, 0
        with suppress(OSError):  # a full disk stops no reward
            if self._log is not None:
                self._log.parent.mkdir(exist_ok=True)
                held = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
                file, size = os.fdopen(held, "ab", 0), os.fstat(held).st_size
        while piece := os.read(self._source, 65536):
            self._last = (self._last + piece)[-LAST_BYTES:]
            with suppress(OSError):
                if file is not None:
                    if size + len(piece) > OUTPUT_BYTES:
                        file.truncate(0)
                        size = 0
                    size += file.write(piece) or 0
        if file is not None:
            file.close()
        os.close(self._source)

    def last_lines(self) -> str:
        self.join(0.2)  # what was printed at the very end is still on its way
        lines = self._last.decode(errors="replace").splitlines()
        # A crash ends with a list of all extension modules, which says nothing of it.
        lines = [line for line in lines if line.strip() and not line.startswith("Extension modules:")]
        return shown("\n".join(f"    {line[:LONGEST_LINE]}" for line in lines[-LAST_LINES:]))


def memory_of(process: int) -> int:
    """Bytes of memory that a process and those it started hold; 0 where that cannot be known."""
    total, waiting = 0, [process]
    while waiting:
        one = waiting.pop()
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for thread in os.listdir(f"/proc/{one}/task"):
                children = Path(f"/proc/{one}/task/{thread}/children").read_text()
                waiting += map(int, re.findall(r"\d+", children))
    return total


# -- the other side ---------------------------------------------------------------------------------------------


def main(connection: int, parent: int) -> None:
    """The process itself."""
    end_with(parent)
    import faulthandler

    from rlalign.serving.protocol import greet

    faulthandler.enable()
    with suppress(OSError):  # where memory runs out, it is this process that goes, not the run
        Path("/proc/self/oom_score_adj").write_text("1000")
    channel = Channel(socket.socket(fileno=connection))
    with suppress(Broken):
        greet(channel, None, START_SECONDS)
        asked = channel.receive(START_SECONDS)
        torch.set_num_threads(asked["threads"])
        recipe = Recipe(**asked["recipe"])
        hosted = answering(recipe)
        if isinstance(hosted, str):
            channel.send({"error": hosted})
        else:
            channel.send({"ready": True})
            answer_on(channel, hosted.answer)
