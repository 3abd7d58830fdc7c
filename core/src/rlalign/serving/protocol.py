"""Frames: a length, then as many bytes of JSON, of a bounded size. Nothing is pickled.

A connection begins with a greeting each way, which says the version of this protocol before anything else is read.
Floats are written in Python's shortest exact form, and what JSON has no number for as "nan", "inf" and "-inf".
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import socket
import struct
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from rlalign.data.limits import FRAME_BYTES, in_words

PROTOCOL = 1
"""Raised whenever a frame means something else than before."""
TOKEN = "RLALIGN_SERVE_TOKEN"
"""The environment variable that holds what both ends of a connection between machines must know."""
SHORTEST_TOKEN = 16
"""Characters."""
_HEAD = struct.Struct(">Q")
_SLICE = 0.05
"""Seconds between two looks at whoever is to answer."""
_PIECE = 2**18
_GREETING = 2**16
"""Bytes of a greeting at most: whoever sends it may be anybody."""


class Broken(Exception):
    """The other end is gone, silent, or says what cannot be understood: in words that follow its name."""


class NoRoom(Broken):
    """There was no place for it as long as it was waited for."""


class Refused(Exception):
    """The other end will not answer, and would not the next time: a whole sentence."""


def forever() -> None:
    """Looks at nothing."""


class Channel:
    """A connection that carries frames. One side asks, the other answers, in turn."""

    def __init__(self, connected: socket.socket, look: Callable[[], None] = forever) -> None:
        self._socket = connected
        self._look = look
        """Called while this end waits; raises Broken where waiting is of no use."""
        connected.settimeout(_SLICE)

    def send(self, message: dict[str, Any], seconds: float = math.inf) -> None:
        """Send one frame; Broken where it cannot be sent within so many seconds."""
        data = json.dumps(message, allow_nan=False).encode()
        if len(data) > FRAME_BYTES:
            raise Refused(
                f"a batch of {in_words(len(data))} is larger than the {in_words(FRAME_BYTES)} that travel at once; "
                "lower `train.prompts`"
            )
        left, until = memoryview(_HEAD.pack(len(data)) + data), time.monotonic() + seconds
        while left:
            try:
                left = left[self._socket.send(left[:_PIECE]) :]
            except TimeoutError:
                self._wait(until, seconds)
            except OSError as error:
                raise Broken(f"closed the connection ({error.strerror or error})") from error

    def receive(self, seconds: float = math.inf, most: int = FRAME_BYTES) -> dict[str, Any]:
        """The next frame; Broken where none comes within so many seconds, or something else or larger does."""
        until = time.monotonic() + seconds
        (size,) = _HEAD.unpack(self._read(_HEAD.size, until, seconds))
        if size > most:
            raise Broken(f"announced {in_words(size)}, more than the {in_words(most)} of a frame")
        try:
            message = json.loads(self._read(size, until, seconds), parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise Broken("sent what is no JSON") from None
        if not isinstance(message, dict):
            raise Broken("sent JSON that is no message")
        return message

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer; sending may take so many seconds, and answering."""
        self.send(question, seconds)
        return self.receive(seconds)

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int, until: float, seconds: float) -> bytes:
        found = bytearray()  # grows with what comes, whatever was announced
        while len(found) < size:
            try:
                piece = self._socket.recv(min(_PIECE, size - len(found)))
            except TimeoutError:
                self._wait(until, seconds)
                continue
            except OSError as error:
                raise Broken(f"closed the connection ({error.strerror or error})") from error
            if not piece:
                raise Broken("closed the connection")
            found += piece
            if time.monotonic() > until:
                self._wait(until, seconds)
        return bytes(found)

    def _wait(self, until: float, seconds: float) -> None:
        self._look()
        if time.monotonic() > until:
            raise Broken(f"did not answer within {seconds:g} seconds")


def _no_number(said: str) -> Any:
    raise ValueError(said)


# -- greetings ---------------------------------------------------------------------------------------------


def greet(channel: Channel, token: str | None, seconds: float) -> None:
    """A server's side: say who it is, and let in whoever knows the token. Refused otherwise."""
    nonce = secrets.token_hex(16)
    channel.send({**_myself(), "nonce": nonce, "token": token is not None}, seconds)
    them = channel.receive(seconds, _GREETING)
    if wrong := _stranger(them, "the run"):
        channel.send({"refused": wrong}, seconds)
        raise Refused(wrong)
    if token is not None and not hmac.compare_digest(str(them.get("proof")), _proof(token, nonce)):
        channel.send({"refused": f"{TOKEN} is another one there than here"}, seconds)
        raise Refused("a wrong token")
    channel.send({"welcome": True}, seconds)


def introduce(channel: Channel, token: str | None, seconds: float) -> None:
    """A client's side."""
    them = channel.receive(seconds, _GREETING)
    if wrong := _stranger(them, "the server"):
        raise Refused(wrong)
    mine = _myself()
    if them.get("token"):
        if not token:
            raise Refused(f"the server asks for a token: set {TOKEN} to what it is there")
        mine["proof"] = _proof(token, str(them.get("nonce")))
    channel.send(mine, seconds)
    answer = channel.receive(seconds, _GREETING)
    if "welcome" not in answer:
        raise Refused(f"the server refuses: {str(answer.get('refused'))[:500]}")


def want(channel: Channel, name: str, digest: str, seconds: float) -> None:
    """A client's side, once it is let in: which reward it will ask, and what that shall be."""
    answer = channel.ask({"name": name, "digest": digest}, seconds)
    if "ready" not in answer:
        raise Refused(f"the server refuses: {str(answer.get('refused'))[:500]}")


def _myself() -> dict[str, Any]:
    return {"protocol": PROTOCOL, "rlalign": version("rlalign")}


def _stranger(them: dict[str, Any], who: str) -> str | None:
    if them.get("protocol") == PROTOCOL:
        return None
    if type(them.get("protocol")) is not int:
        raise Broken("is no server of rewards: its first words are not rlalign's")
    return (
        f"{who} (rlalign {str(them.get('rlalign'))[:40]}) speaks version {them['protocol']} of the protocol, and this "
        f"rlalign {version('rlalign')} version {PROTOCOL}; install the same rlalign on both"
    )


def _proof(token: str, nonce: str) -> str:
    return hmac.new(token.encode(), nonce.encode(), "sha256").hexdigest()
