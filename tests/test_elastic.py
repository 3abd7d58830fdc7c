"""Machines that come and go, by torchrun's `--nnodes 1:2`: two agents on this machine, with a process each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "world"))
from commands import BANDIT, BEGUN, Command, bits, wait_for
from comparing import ROOT, apart, metrics

METRICS, WEIGHTS = 1e-12, 1e-11
COMES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it torch 2.13 does not tell who comes later where the processes meet."""


class Agent:
    """A machine's torchrun, and its one process."""

    def __init__(
        self, port: int, nodes: str, arguments: tuple[str, ...], said: Path, environment: dict[str, str]
    ) -> None:
        self.port, self.said = port, said
        elastic = (
            "--nnodes",
            nodes,
            "--nproc-per-node",
            "1",
            "--max-restarts",
            "3",
            "--rdzv-backend",
            "c10d",
        )
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", *elastic),
                *("--rdzv-endpoint", f"localhost:{port}", "-m", "rlalign", "run", *arguments, "--plain"),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=said.open("w"),
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )

    def worker(self) -> int:
        """Its process."""
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            for child in Path(f"/proc/{self.process.pid}/task/{thread}/children").read_text().split():
                if "\0RANK=" in Path(f"/proc/{child}/environ").read_text():
                    return int(child)
        raise AssertionError(f"it has no process: {self.said.read_text()}")

    def end(self) -> tuple[int, str]:
        code = self.process.wait(600)
        return code, self.said.read_text()

    def kill(self) -> None:
        """The machine is lost."""
        worker = self.worker()
        self.process.kill()
        os.kill(worker, signal.SIGKILL)
        self.process.wait(60)

    def listens(self) -> bool:
        """Whether others can find it."""
        with socket.socket() as asking:
            return asking.connect_ex(("localhost", self.port)) == 0


Start = Callable[..., Agent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts agents that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    agents: list[Agent] = []

    def begin(*arguments: str, nodes: str = "1:2", **environment: str) -> Agent:
        said = tmp_path / f"agent-{len(agents)}.txt"
        agents.append(Agent(port, nodes, (*arguments, "--runs", str(tmp_path)), said, environment))
        return agents[-1]

    yield begin
    for agent in agents:
        if agent.process.poll() is None:
            agent.kill()


def processes(run: Path) -> list[str]:
    """What was said of how many went on with it."""
    file = run / "inexact.jsonl"
    return [json.loads(line)["said"][0] for line in file.read_text().splitlines()] if file.exists() else []


def alone(folder: Path, *arguments: str) -> Path:
    code, said = Command(*arguments, "--name", "alone", runs=folder).end()
    assert code == 0, said
    return folder / "alone"


def close(one: Path, other: Path) -> None:
    figure, which, number, where = apart(one, other)
    assert figure <= METRICS, f"{which} by {figure}"
    assert number <= WEIGHTS, f"{where} by {number}"


@pytest.mark.slow
@pytest.mark.parametrize("which", BEGUN)
def test_a_machine_is_lost_and_the_other_goes_on_alone(which: str, start: Start, tmp_path: Path) -> None:
    begin = BEGUN[which]
    host = start(*begin, "--name", "elastic")  # the first one has the others' meeting place
    until(host.listens, host)
    other = start(*begin, "--name", "elastic")
    wait_for(tmp_path / "elastic/checkpoints/00000003")
    other.kill()
    code, said = host.end()
    assert code == 0, said
    assert "rank" in said and "is gone: it was killed, or it crashed" in said, said
    (told,) = processes(tmp_path / "elastic")
    assert "2 processes when the run began, 1 now" in told
    close(alone(tmp_path, *begin), tmp_path / "elastic")


@pytest.mark.slow
@pytest.mark.parametrize("which", BEGUN)
def test_a_process_is_lost_and_both_machines_begin_again(which: str, start: Start, tmp_path: Path) -> None:
    agents = [start(*BEGUN[which], "--name", "elastic", nodes="2") for _ in range(2)]
    wait_for(tmp_path / "elastic/checkpoints/00000003")
    os.kill(agents[1].worker(), signal.SIGKILL)
    for agent in agents:
        code, said = agent.end()
        assert code == 0, said
    whole = (*BEGUN[which], "--processes", "2", "--name", "whole")
    assert Command(*whole, runs=tmp_path).end()[0] == 0
    assert metrics(tmp_path / "elastic") == metrics(tmp_path / "whole")
    assert bits(tmp_path / "elastic") == bits(tmp_path / "whole")


@pytest.mark.slow
def test_machines_come_and_go(start: Start, tmp_path: Path) -> None:
    """One begins, another joins, is lost, and a third one takes its place."""
    slowly = (BANDIT, f"folder={Path(__file__).parent / 'world'}", "evaluate=null", "train.iterations=300")
    begin = (*slowly, "rewards=[bandit-payout,{'odd:Takes': {seconds: 0.3}}]", "--name", "elastic")
    run = tmp_path / "elastic"
    host = start(*begin, "--or-resume", **COMES)
    wait_for(run / "checkpoints/00000003")
    second = start(*begin, "--or-resume", **COMES)
    until(lambda: len(processes(run)) == 1, host)
    further(run, host)
    second.kill()
    further(run, host)
    third = start(*begin, "--or-resume", **COMES)
    until(lambda: len(processes(run)) == 2, host)
    for agent in (host, third):
        code, said = agent.end()
        assert code == 0, said
    assert all("1 processes when the run began, 2 now" in told for told in processes(run))
    close(alone(tmp_path, *slowly, "rewards=[bandit-payout,{'odd:Takes': {seconds: 0}}]"), run)


def until(true: Callable[[], bool], agent: Agent) -> None:
    end = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end and agent.process.poll() is None, agent.said.read_text()
        time.sleep(0.1)


def further(run: Path, agent: Agent) -> None:
    """Some more checkpoints are there."""
    last = max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
    until((run / f"checkpoints/{last + 3:08}").exists, agent)
