"""Runs that are interrupted and resumed, and what two runs are compared by."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlalign.records import checkpoint

HERE = Path(__file__).parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TERM": "dumb"}
Interference = tuple[str, Mapping[str, Any]]
"""A function of `interfere.py` and its options."""


@dataclass
class Ended:
    """A process that is over."""

    code: int
    output: str

    def __str__(self) -> str:
        return f"exit {self.code}:\n{self.output}"


@dataclass
class Process:
    """A process under way."""

    pid: int
    server: Server
    output: Path

    def wait(self) -> Ended:
        return Ended(int(self.server.ask({"wait": self.pid})), self.output.read_text())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Server:
    """The process that `rlalign` processes are forked from."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HERE / "forkserver.py"],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.count = 0

    def ask(self, order: Mapping[str, Any]) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def start(self, arguments: list[Any], output: Path, interfere: list[Interference]) -> Process:
        order = {"arguments": [str(a) for a in arguments], "output": str(output), "interfere": interfere}
        return Process(int(self.ask(order)), self, output)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)


@dataclass
class Runs:
    """One pipeline, run under one root; the run is always called `run`."""

    pipeline: Path
    root: Path
    server: Server
    overrides: list[str] = field(default_factory=list)
    outputs: int = 0

    @property
    def path(self) -> Path:
        return self.root / "run"

    def begin(self, *interfere: Interference, resume: bool = False, options: tuple[str, ...] = ()) -> Process:
        self.root.mkdir(parents=True, exist_ok=True)
        self.outputs += 1
        arguments: list[Any] = ["run", "--plain", *options]
        if resume:
            arguments += ["--resume", self.path]
        else:
            arguments += [self.pipeline, *self.overrides, "--name", "run", "--runs", self.root]
        return self.server.start(arguments, self.root / f"output-{self.outputs}", list(interfere))

    def start(self, *interfere: Interference) -> Ended:
        return self.begin(*interfere).wait()

    def resume(self, *interfere: Interference, options: tuple[str, ...] = ()) -> Ended:
        return self.begin(*interfere, resume=True, options=options).wait()

    def go_on(self, *interfere: Interference) -> Ended:
        """Start, or resume where there is a run already."""
        return self.resume(*interfere) if self.path.exists() else self.start(*interfere)


# -- what is compared --------------------------------------------------------------------------------


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on interruptions, as one flat dict."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        top = name.split("/")[0]
        if not path.is_file() or top in (".running", ".logs", "checkpoints", "events"):
            continue
        if path.suffix == ".jsonl":
            for i, line in enumerate(path.read_text().splitlines()):
                found[f"{name}:{i + 1}"] = without_time(json.loads(line))
        elif name == "lock.json":
            found[name] = json.loads(path.read_text())
        else:
            found[name] = path.read_bytes()
    found["events"] = [event for event in scalars(run / "events") if not event[1].startswith("time/")]
    for index in checkpoint.find(run / "checkpoints"):
        found |= commit_point(run, index)
    return found


def commit_point(run: Path, index: int) -> dict[str, Any]:
    saved = checkpoint.read(run / "checkpoints", index)
    versions = {f"{index}/models/{name}/version": version for name, (version, _) in saved.models.items()}
    parts = {
        "models": {name: weights for name, (_, weights) in saved.models.items()},
        "optimiser": saved.optimiser,
        "components": saved.components,
        "loop": saved.loop,
    }
    return {**versions, **dict(leaves(parts, f"{index}"))}


def leaves(tree: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{place}/{key}")
    elif isinstance(tree, torch.Tensor):
        flat = tree.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield place, (str(tree.dtype), tuple(tree.shape), flat)
    else:
        yield place, tree


def without_time(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def scalars(folder: Path) -> list[tuple[int, str, Any]]:
    """(step, tag, value) of all event files in the order they were written, texts too."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [
                (event.step, value.tag, *(value.tensor.string_val or [value.simple_value]))
                for value in event.summary.value
            ]
            at += 16 + length
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any], common: bool = False) -> list[str]:
    """Where two outcomes differ. `common`: checkpoints that only one of them kept do not count."""
    keys = [
        key
        for key in {**one, **other}
        if not (common and key[0].isdigit() and (key in one) != (key in other))
    ]
    return [key for key in keys if (key in one, one.get(key)) != (key in other, other.get(key))]


def wait_until(path: Path, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.005)
