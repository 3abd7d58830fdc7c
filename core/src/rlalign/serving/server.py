"""Serves rewards to runs on other machines, or to several runs on this one."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from rlalign.config.registry import Registry
from rlalign.config.rewards import load_rewards
from rlalign.errors import ConfigError, attributed_to
from rlalign.serving.host import Hosted, answer_all, digest_of
from rlalign.serving.protocol import SHORTEST_TOKEN, TOKEN, Broken, Channel, Refused, greet
from rlalign.serving.served import unservable

GREETING_SECONDS = 10.0
MOST_CONNECTIONS = 64
"""At once; who comes later waits."""


class Server:
    """Rewards that listen. Each connection has a thread; each reward answers one question at a time."""

    def __init__(self, hosted: Mapping[str, Hosted], host: str, port: int) -> None:
        self._hosted = hosted
        self._token = token_for(host)
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listening = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"{host}:{port}: cannot listen there: {error}") from error
        self.port: int = self._listening.getsockname()[1]

    def serve(self) -> None:
        """Until the process is ended."""
        with suppress(OSError):  # closed
            while True:
                self._room.acquire()
                connected, _ = self._listening.accept()
                threading.Thread(target=self._meet, args=(connected,), daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _meet(self, connected: socket.socket) -> None:
        channel = Channel(connected)
        try:
            with suppress(Broken, Refused):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                greet(channel, self._token, GREETING_SECONDS)
                answer_all(channel, self._hosted)
        finally:
            channel.close()
            self._room.release()


def token_for(host: str) -> str | None:
    """What whoever connects must know. None asks for nothing, which is for this machine only."""
    token = os.environ.get(TOKEN)
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ConfigError(f"{TOKEN}: has fewer than {SHORTEST_TOKEN} characters, and could be guessed")
    if token is None and not _is_loopback(host):
        raise ConfigError(
            f"{host}: others can connect there; set {TOKEN} to a secret of {SHORTEST_TOKEN} characters or more, here "
            "and where the runs are"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_all(
    path: Path, registry: Registry, told: Callable[[str], None] = lambda line: None
) -> dict[str, Hosted]:
    """The rewards of a file, each set up; of a whole pipeline, those that can be served. Tells of each."""
    file = load_rewards(path, registry)
    hosted = {}
    for name, item in file.items.items():
        if wrong := unservable(item.peek()):
            told(f"`{name}` is not served: it {wrong}")
            continue
        with attributed_to(f"{item.place}: `setup` of `{name}`", name):
            hosted[name] = Hosted(item, digest_of(item, file.folder), file.seed)
        told(f"`{name}` (digest {hosted[name].digest[:12]})")
    if not hosted:
        raise ConfigError(f"{path}: holds no reward that can be served")
    return hosted
