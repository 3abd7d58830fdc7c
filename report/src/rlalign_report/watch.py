"""A run's page, served to this machine alone while the run goes on. The run knows nothing of it."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rlalign.errors import ConfigError
from rlalign_report import page
from rlalign_report.data import page_data
from rlalign_report.run import Run

HOST = "127.0.0.1"
PATIENCE = 10
"""Seconds that a browser may take to say what it wants."""
REST = 5
"""After the page's values were made, so many times as long as that took they stay as they are."""


class Watch:
    """A server for one run. Whoever does not know the token in its address is told nothing."""

    def __init__(self, run: Run, port: int = 0) -> None:
        self.watched = run
        self.token = secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        self._data: dict[str, Any] = {}
        self._began = secrets.token_hex(4)
        self._version = 0
        self._until = 0.0
        try:
            self._server = _Server((HOST, port), _handler(self))
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot be had: {error.strerror}; choose another, or none for a free one"
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self._server.server_port}/{self.token}/"

    def data(self) -> dict[str, Any]:
        """The values of the page as the run stands now; `watched` is another where they are."""
        with self._lock:
            if time.monotonic() < self._until:
                return self._data
            began = time.monotonic()
            if self.watched.look() or not self._data:
                self._version += 1
                made = page_data([self.watched], live=True)
                self._data = {**made, "watched": f"{self._began}-{self._version}"}
            self._until = time.monotonic() + REST * (time.monotonic() - began)
            return self._data

    def serve(self) -> None:
        """Answer until Ctrl-C, or until `close` is called from another thread."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Let `serve` return."""
        self._server.shutdown()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; what else goes wrong is said to whoever asked."""


def _handler(watch: Watch) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE
        server_version, sys_version = "rlalign", ""

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            token, slash, rest = asked.path.removeprefix("/").partition("/")
            known = hmac.compare_digest(token.encode("utf-8", "replace"), watch.token.encode())
            # By another name a page of somebody else's could ask in a browser's name.
            here = self.headers.get("Host") == urlsplit(watch.address).netloc
            if not (known and here and slash and rest in ("", "data")):
                return self._answer(404, b"nothing is here\n", "text/plain")
            try:
                data = watch.data()
                if rest == "":
                    return self._answer(200, page.html(data).encode(), "text/html; charset=utf-8")
                if parse_qs(asked.query).get("have") == [data["watched"]]:
                    return self._answer(204, b"", "application/json")
                body = json.dumps(data, allow_nan=False).encode()
            except Exception as error:
                return self._answer(
                    500, f"{type(error).__name__}: {error}\n".encode(), "text/plain; charset=utf-8"
                )
            return self._answer(200, body, "application/json")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
            for name, value in (
                ("Cache-Control", "no-store"),
                ("Referrer-Policy", "no-referrer"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "DENY"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
                ("Cross-Origin-Opener-Policy", "same-origin"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the address holds the token."""

    return Handler
