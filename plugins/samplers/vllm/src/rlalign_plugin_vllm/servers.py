"""Servers: one that runs, asked over HTTP, and one that is started here, watched, and ended with the run."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlalign import RLAlignError
from rlalign.parents import end_with

HEALTH_SECONDS = 10.0
"""How long a server may take to say that it is there."""
LAST_LINES = 12
"""Of what a server printed that an error quotes."""
LONGEST = 500
"""Characters of an answer that an error quotes."""
_starter = ThreadPoolExecutor(1, "starts-servers")
"""One thread that lives as long as this process: Linux ends a child with the thread that started it."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes where the pipeline says, and no further."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


class Failed(Exception):
    """A server did not answer, or not what it should: another one may."""


class Server:
    """A server that somebody else started."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.lock = threading.Lock()
        """Held by whoever gives it weights."""
        self.doubted = True
        """Whether it must be given the present weights before it is asked again."""
        self.times = 0
        """How often it was given weights: a request from before says nothing of it any more."""

    def ask(self, path: str, body: Mapping[str, Any] | None, seconds: float) -> bytes:
        """Its answer. `Failed` where there is none; refused where it says that the request is at fault."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with _opener.open(
                urllib.request.Request(self.url + path, data, headers), timeout=seconds
            ) as answer:
                said: bytes = answer.read()
                return said
        except urllib.error.HTTPError as error:
            told = f"{path}: {error.code}: {_told(error)}"
            if error.code == 404:
                told += " (the README of rlalign-plugin-vllm says how servers are started)"
            if 400 <= error.code < 500 and error.code not in (408, 429):
                raise RLAlignError(f"{self.url} refuses {told}") from error
            raise Failed(told) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Failed(f"{path}: {type(reason).__name__}: {reason}") from error

    def begin(self, seconds: float) -> bool:
        """Be there. Whether it has read the present weights by that."""
        self.ask("/health", None, min(seconds, HEALTH_SECONDS))
        return False

    def close(self) -> None:
        """It is not ours to end."""


class Started(Server):
    """A server on this machine that the run starts, and starts again."""

    def __init__(
        self, command: Callable[[int], Sequence[str]], environment: Mapping[str, str], log: Path
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}")
        self.command, self.environment, self.log = command(port), dict(environment), log
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False

    def begin(self, seconds: float) -> bool:
        """One that was doubted is dead or hangs: it is ended and started again."""
        if not self.doubted and self.process is not None and self.process.poll() is None:
            return False
        self._end()
        if self.closed:
            raise Failed("the run is over")
        self.process = process = _starter.submit(self._start).result()
        until = time.monotonic() + seconds
        while True:
            if process.poll() is not None:
                raise RLAlignError(
                    f"the server {self.command[0]} ended with code {process.returncode} when it was started:"
                    f"\n{self.last_lines()}"
                )
            with suppress(Failed):
                self.ask("/health", None, HEALTH_SECONDS)
                return True
            if time.monotonic() > until:
                raise Failed(f"was not there {seconds:g} seconds after it was started:\n{self.last_lines()}")
            time.sleep(0.2)

    def _start(self) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the run, which ends its servers itself.
            return subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: end_with(parent, signal.SIGTERM),
            )

    def last_lines(self) -> str:
        """The end of what it printed."""
        with suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            return "\n".join(f"    {line[:LONGEST]}" for line in lines)
        return ""

    def close(self) -> None:
        self.closed = True
        self._end()

    def _end(self) -> None:
        """End it, and what it started."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def _told(error: urllib.error.HTTPError) -> str:
    with suppress(OSError, http.client.HTTPException):
        return error.read(LONGEST).decode(errors="replace").strip() or error.reason
    return error.reason
