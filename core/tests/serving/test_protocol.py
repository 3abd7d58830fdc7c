"""Frames, greetings, and ends that are not what they should be: real sockets."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from rlalign.data.limits import FRAME_BYTES
from rlalign.serving.protocol import PROTOCOL, Broken, Channel, Refused, greet, introduce


@contextmanager
def pair(other: Callable[[socket.socket], None]) -> Iterator[Channel]:
    """A channel, and somebody at its other end."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs:
            other(theirs)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield Channel(ours)
    finally:
        ours.close()
        thread.join()


def frame(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


def test_a_frame_comes_as_it_was_sent() -> None:
    message = {"text": "ä\ud800\0", "numbers": [0.1, 1e-320, 2**70, -0.0], "large": "x" * 3_000_000}

    def echo(other: socket.socket) -> None:
        channel = Channel(other)
        channel.send(channel.receive(5), 5)

    with pair(echo) as channel:
        channel.send(message, 5)
        found = channel.receive(5)
    assert found == message and str(found["numbers"]) == str(message["numbers"])


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "closed the connection"),
        (b"\0\0\0", "closed the connection"),
        (frame(b"{}")[:-1], "closed the connection"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "announced 4.52 EiB, more than the 256 MiB of a frame"),
        (struct.pack(">Q", FRAME_BYTES + 1), "announced 256 MiB, more than"),
        (frame(b"{'a': 1}"), "sent what is no JSON"),
        (frame(b'{"a": NaN}'), "sent what is no JSON"),
        (frame(b"[" * 100_000), "sent what is no JSON"),
        (frame(b"\xff\xfe{}"), "sent what is no JSON"),
        (frame(b"[1]"), "sent JSON that is no message"),
    ],
)
def test_what_is_no_frame(sent: bytes, said: str) -> None:
    with pair(lambda other: other.sendall(sent)) as channel, pytest.raises(Broken) as caught:
        channel.receive(5)
    assert str(caught.value).startswith(said)


def test_what_is_announced_is_not_taken_before_it_comes() -> None:
    """And a frame that trickles in without end ends at the limit of time."""

    def trickle(other: socket.socket) -> None:
        other.sendall(struct.pack(">Q", FRAME_BYTES))
        try:
            while True:
                other.sendall(b" ")
                time.sleep(0.01)
        except OSError:
            pass

    started = time.monotonic()
    with pair(trickle) as channel, pytest.raises(Broken, match=r"did not answer within 0\.3 seconds"):
        channel.receive(0.3)
    assert time.monotonic() - started < 3


def test_a_frame_that_is_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlalign.serving.protocol.FRAME_BYTES", 100)
    with pair(lambda other: None) as channel, pytest.raises(Refused, match=r"lower `train\.prompts`"):
        channel.send({"text": "x" * 100})


# -- greetings -----------------------------------------------------------------------------------------------------


def meeting(theirs: str | None, mine: str | None) -> str:
    """What a client with this token is told by a server with that one."""

    def serve(other: socket.socket) -> None:
        try:
            greet(Channel(other), theirs, 5)
        except (Refused, Broken):
            pass

    with pair(serve) as channel:
        try:
            introduce(channel, mine, 5)
        except Refused as error:
            return str(error)
    return "welcome"


def test_who_knows_the_token_is_let_in() -> None:
    secret = "a secret of some length"
    assert meeting(None, None) == meeting(None, secret) == meeting(secret, secret) == "welcome"
    assert "asks for a token: set RLALIGN_SERVE_TOKEN" in meeting(secret, None)
    assert "is another one there than here" in meeting(secret, secret[:-1])


def test_the_token_does_not_travel() -> None:
    heard: list[bytes] = []

    def listen(other: socket.socket) -> None:
        other.sendall(frame(json.dumps({"protocol": PROTOCOL, "nonce": "n", "token": True}).encode()))
        heard.append(other.recv(10_000))

    with pair(listen) as channel, pytest.raises(Broken):
        introduce(channel, "a secret of some length", 5)
    assert b"proof" in heard[0] and b"secret" not in heard[0]


def test_another_version_is_told_with_both() -> None:
    other = json.dumps({"protocol": PROTOCOL + 1, "rlalign": "9.9"}).encode()
    with pair(lambda server: server.sendall(frame(other))) as channel, pytest.raises(Refused) as caught:
        introduce(channel, None, 5)
    assert f"the server (rlalign 9.9) speaks version {PROTOCOL + 1} of the protocol" in str(caught.value)
    assert f"version {PROTOCOL}; install the same rlalign on both" in str(caught.value)


def test_who_is_no_server_of_rewards() -> None:
    with pair(lambda server: server.sendall(frame(b"{}"))) as channel:
        with pytest.raises(Broken, match="is no server of rewards"):
            introduce(channel, None, 5)
