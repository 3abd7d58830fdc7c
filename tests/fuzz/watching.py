"""What no input may do: crash, hang, write outside its folder, or import code that lies beside it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rlalign import RLAlignError
from rlalign.running.loop import Interrupted
from rlalign_plugin_hf import rendering

SECONDS = 20
"""An input takes less, on a busy machine too."""
LONGEST = 20_000
"""Characters of a message that a user can still read."""

WRITING = {
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod"),
    *("os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
}

RENDERER = [sys.executable, "-P", rendering.__file__]
"""Where templates of chats are rendered, apart from all else: the one process that may be started."""


class Hang(BaseException):
    """An input that takes too long."""


class Watch:
    """Sees what this process opens, changes and imports, through Python's audit events."""

    def __init__(self, trap: str) -> None:
        self.trap = trap
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or bool(
                (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            )
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._written(event, path)
        elif event in WRITING:
            for path in arguments[:2] if event in ("os.rename", "os.link", "shutil.move") else arguments[:1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._written(event, path)
        elif event == "import" and str(arguments[0]).partition(".")[0] == self.trap:
            self.seen.append(f"imported {arguments[0]}")
        elif event == "subprocess.Popen" and list(arguments[1]) == RENDERER:
            pass
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "socket.connect"):
            self.seen.append(event)

    def _written(self, event: str, path: Any) -> None:
        name = os.fsdecode(path)
        real = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(name))), os.path.basename(name))
        if real != os.devnull and not any(
            real == root or real.startswith(f"{root}/") for root in self.allowed
        ):
            self.seen.append(f"{event} {real}")

    @contextmanager
    def over(self, *allowed: Path) -> Iterator[None]:
        """Watch what is done inside; it may write in these folders, and where temporary files go."""
        roots = [*allowed, Path(tempfile.gettempdir())]
        self.allowed = tuple(str(root.resolve()) for root in roots)
        self.on = True
        try:
            yield
        finally:
            self.on = False


def verdict(work: Callable[[], object], watch: Watch, *allowed: Path) -> str | None:
    """What is wrong with how an input ended; None if it ended well, or was refused in words."""
    watch.seen.clear()
    before = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    try:
        with watch.over(*allowed):
            work()
        wrong = None
    except Interrupted:
        wrong = None
    except RLAlignError as error:
        wrong = _unreadable(str(error))
    except Hang:
        wrong = f"took longer than {SECONDS} s"
    except BaseException as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        at = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "?"
        wrong = f"{type(error).__name__}: {str(error)[:200]} ({at})"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return wrong or ("; ".join(dict.fromkeys(watch.seen)) or None)


def _unreadable(message: str) -> str | None:
    if not message.strip():
        return "refused without a word"
    return f"a message of {len(message)} characters" if len(message) > LONGEST else None


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang
