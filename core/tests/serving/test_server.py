"""`rlalign serve-reward` and whoever asks it: over a real socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlalign.config.registry import Registry
from rlalign.errors import ComponentError, ConfigError
from rlalign.serving.protocol import Channel, greet, introduce
from rlalign.serving.server import Server, host_all, token_for

sys.path.insert(0, str(Path(__file__).parent))
from serving_bench import HERE, isolated, real, rollout, run


@contextmanager
def server(tmp_path: Path, rewards: str) -> Iterator[Server]:
    """One in this process, for a file of these rewards."""
    file = tmp_path / "rewards.yaml"
    file.write_text(f"folder: {HERE}\nrewards: {rewards}\n")
    one = Server(host_all(file, Registry(trust=True)), "127.0.0.1", 0)
    thread = threading.Thread(target=one.serve)
    thread.start()
    try:
        yield one
    finally:
        one.close()
        thread.join()


SEES = '[{"served_rewards:Sees": {}, as: sees}]'


def test_the_same_to_the_bit_from_a_server(tmp_path: Path) -> None:
    given, inline = rollout(["a bc", "d", "", "efg"], samples=2), real("Sees")
    with server(tmp_path, SEES) as one, isolated("Sees", at=f"127.0.0.1:{one.port}") as served:
        served.setup(run())
        found = served.reward(run=run(), rollout=given)
        assert served.evaluate(run=run(), rollout=given) == inline.evaluate(rollout=given)  # type: ignore[attr-defined]
    here = inline.reward(run=run(), rollout=given)  # type: ignore[attr-defined]
    assert found.metrics["meta"].equal(here.metrics["meta"])
    assert found.value.sum(1).equal(_within(here.value, given).sum(1))


def _within(value: Any, given: Any) -> Any:
    return value.where(given.mask_NT, 0.0)


def test_health(tmp_path: Path) -> None:
    with server(tmp_path, SEES) as one, socket.create_connection(("127.0.0.1", one.port)) as connected:
        channel = Channel(connected)
        introduce(channel, None, 5)
        channel.send({"ask": "health"}, 5)
        assert list(channel.receive(5)["rewards"]) == ["sees"]


def test_another_name_or_other_options_are_refused_with_both(tmp_path: Path) -> None:
    options = '[{"served_rewards:Misbehaves": {once: /tmp/x}, as: misbehaves}]'
    with server(tmp_path, options) as one:
        with isolated("Sees", at=f"127.0.0.1:{one.port}") as served:
            with pytest.raises(ComponentError, match="there is no `sees` here; there are misbehaves"):
                served.setup(run())
        with isolated("Misbehaves", at=f"127.0.0.1:{one.port}") as served:
            with pytest.raises(
                ComponentError, match=r"has other options or other code here \(digest \w{12}\) than"
            ):
                served.setup(run())


def test_what_is_not_on_this_machine_is_told_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with isolated("Sees", at=f"127.0.0.1:{port}") as served, pytest.raises(ComponentError) as caught:
        served.setup(run())
    assert f"`sees` at 127.0.0.1:{port}, p.yaml:3: it cannot be reached (" in str(caught.value)


@contextmanager
def odd_server(answer: Callable[[Channel, socket.socket], None]) -> Iterator[int]:
    """One that greets, says that it is ready, reads a question, and answers so."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(20)  # nobody may come

    def serve() -> None:
        connected, _ = listening.accept()
        with connected:
            channel = Channel(connected)
            greet(channel, None, 5)
            channel.receive(5)
            channel.send({"ready": True}, 5)
            channel.receive(5)
            answer(channel, connected)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        thread.join()
        listening.close()


def _answers(*columns: Any) -> dict[str, Any]:
    return {"answers": [{"value": {"dtype": "float32", "rows": rows}, "metrics": {}} for rows in columns]}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda c, s: None, "it closed the connection"),
        (lambda c, s: s.sendall(struct.pack(">Q", 100) + b"half of"), "it closed the connection"),
        (lambda c, s: s.sendall(struct.pack(">Q", 2**60)), "it announced 1 EiB, more than the 256 MiB"),
        (lambda c, s: s.sendall(struct.pack(">Q", 7) + b"garbage"), "it sent what is no JSON"),
        (lambda c, s: c.send({}), "it answered what is no score"),
        (lambda c, s: c.send({"answers": [{"value": 3}]}), "it answered what is no score (0.value"),
        (lambda c, s: c.send(_answers([1.0])), "it answered for 1 groups where 2 were asked"),
        (lambda c, s: c.send(_answers([1.0], [1.0, 2.0])), "it gave 2 numbers for 1 responses of a group"),
        (lambda c, s: c.send(_answers([1.0], ["high"])), "it answered what is no score (1.value.rows"),
        (
            lambda c, s: c.send(_answers([1.0], [[1.0]])),
            "it gave numbers for other steps than a response has",
        ),
        (
            lambda c, s: c.send(_answers([1.0], [[1.0, 2, 3]])),
            "gave one group a number a response and another",
        ),
        (lambda c, s: c.send({"error": "\x1b[2J" + "x" * 10**6}), "it \\x1b[2Jxxx"),
    ],
)
def test_a_server_that_answers_oddly(answer: Any, said: str) -> None:
    with odd_server(answer) as port, isolated("Sees", at=f"127.0.0.1:{port}") as served:
        with pytest.raises(ComponentError) as caught:
            served.reward(run=run(), rollout=rollout(["a", "bc"]))
    assert said in str(caught.value) and "`sees`" in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_server_of_other_machines_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLALIGN_SERVE_TOKEN", raising=False)
    assert token_for("127.0.0.1") is token_for("localhost") is token_for("::1") is None
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        with pytest.raises(ConfigError, match="others can connect there; set RLALIGN_SERVE_TOKEN"):
            token_for(host)
    monkeypatch.setenv("RLALIGN_SERVE_TOKEN", "short")
    with pytest.raises(ConfigError, match="fewer than 16 characters"):
        token_for("127.0.0.1")
    monkeypatch.setenv("RLALIGN_SERVE_TOKEN", "long enough, and secret")
    assert token_for("0.0.0.0") == "long enough, and secret"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {}", "holds no `rewards`"),
        ("rewards: [nosuch-reward]", "no component named `nosuch-reward`"),
        ("rewards: [{clip: {low: 0}}]", "holds no reward that can be served"),
        (
            'rewards: ["served_rewards:Sees"]\nphases: [{rewards: [{"served_rewards:Slow": {}, as: Sees}]}]',
            "two rewards",
        ),
    ],
)
def test_a_file_that_serves_nothing(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(f"folder: {HERE}\n{text}\n")
    with pytest.raises(ConfigError, match=said):
        host_all(tmp_path / "p.yaml", Registry(trust=True))


def test_code_of_ones_own_needs_trust(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"folder: {HERE}\nrewards: ['served_rewards:Sees']\n")
    with pytest.raises(ConfigError, match="which no installed package offers"):
        host_all(tmp_path / "p.yaml", Registry())


def test_a_whole_pipeline_serves_what_can_be_served(tmp_path: Path) -> None:
    text = (
        f"folder: {HERE}\nrewards: ['served_rewards:Sees', {{'served_rewards:Slow': {{}}, as: slow}}, "
        "clip: {low: 0}]\n"
        "policy: table\nevaluate: {use: [Sees, {'served_rewards:AtRandom': {}, as: random}]}\n"
        "phases: [{rewards: ['served_rewards:Stateful']}]\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    told: list[str] = []
    assert list(host_all(tmp_path / "p.yaml", Registry(trust=True), told.append)) == [
        "Sees",
        "slow",
        "random",
    ]
    assert [line for line in told if "is not served" in line] == [
        "`clip` is not served: it wraps `reward` of what stands above it, which is in the run's own process",
        "`Stateful` is not served: it keeps a state (`state_dict`), which would be lost with its process",
    ]


@pytest.mark.slow
def test_the_command_goes_away_in_mid_batch_and_is_there_again(tmp_path: Path) -> None:
    shutil.copy(HERE / "served_rewards.py", tmp_path)
    (tmp_path / "p.yaml").write_text('rewards: [{"served_rewards:Misbehaves": {}, as: misbehaves}]\n')
    with _command(tmp_path, 0) as (process, port), isolated("Misbehaves", at=f"127.0.0.1:{port}") as served:
        with pytest.raises(ComponentError, match=r"it raised ValueError: no such word"):
            served.reward(run=run(), rollout=rollout(["raises"]))
        with pytest.raises(ComponentError, match="it closed the connection"):
            served.reward(run=run(), rollout=rollout(["killed"]))
        assert process.wait(10) == -signal.SIGKILL
    with (
        _command(tmp_path, port),
        isolated("Misbehaves", at=f"127.0.0.1:{port}", retries=3) as served,
    ):
        assert served.reward(run=run(), rollout=rollout(["fine"])).value.tolist() == [4.0]


@contextmanager
def _command(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rlalign.cli", "serve-reward", "p.yaml", "--port", str(port)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("serving at 127.0.0.1:"):
                yield process, int(line.split(":")[1].split(";")[0])
                break
        else:
            raise AssertionError("it did not begin")
    finally:
        process.kill()
        process.wait()
