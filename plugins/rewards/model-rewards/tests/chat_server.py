"""A small chat endpoint on this machine, which answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What one request gets."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    before: Callable[[], object] = lambda: None
    """What happens before it is sent."""
    tokens: int | None = 10


class Server:
    """What was asked, and how it is answered: `answer(question, number)`."""

    def __init__(self, answer: Callable[[str, int], Reply | str]) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.at_once = 0
        self.most_at_once = 0
        self.url = ""


@contextmanager
def serving(answer: Callable[[str, int], Reply | str]) -> Iterator[Server]:
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with server.lock:
                number = len(server.asked)
                server.asked.append(question)
                server.bodies.append(body)
                server.headers.append(dict(self.headers.items()))
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                reply = server.answer(question, number)
                reply = Reply(reply) if isinstance(reply, str) else reply
                reply.before()
            finally:  # before it is sent: who has its answer may ask the next question at once
                with server.lock:
                    server.at_once -= 1
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send(reply)

        def _send(self, reply: Reply) -> None:
            said: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": reply.text}}]}
            if reply.tokens is not None:
                said["usage"] = {"total_tokens": reply.tokens}
            data = json.dumps(said).encode() if reply.raw is None else reply.raw
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
