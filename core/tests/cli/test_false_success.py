"""However a component leaves, in a process of its own: an exit without a finished run is never 0, and is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest

ENDS = {
    "sys.exit": "sys.exit(0)",
    "SystemExit without a code": "raise SystemExit",
    "os._exit": "os._exit(0)",
    "posix._exit": "import posix; posix._exit(0)",
    "_exit imported by name": "from os import _exit; _exit(0)",
    "exit code 256": "os._exit(256)",
    "exec": 'os.execv("/bin/true", ["true"])',
    "execlp": 'os.execlp("true", "true")',
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGALRM": "signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(30)",
    "a handler that exits": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); signal.raise_signal(15)",
    "a thread": "threading.Thread(target=os._exit, args=(0,), name='mine').start(); time.sleep(30)",
    "BaseException": "raise type('Mine', (BaseException,), {})('x')",
    "an error without words": "raise type('Mine', (Exception,), {'__str__': lambda self: 1 / 0})()",
}
NAMED_ONLY_BY_SIGNAL = ("SIGTERM", "SIGALRM")
BODY = """
import os, signal, sys, threading, time

import torch
from rlalign import Component, Score, Task, hookimpl
from rlalign.testing.tasks import Numbers


def end():
{end}


class Guest(Component):
    def __init__(self, config):
        super().__init__(config)
        if {place!r} == "construction":
            end()

    def setup(self, run):
        if {place!r} == "setup":
            end()

    def state_dict(self):
        if {place!r} == "state":
            end()
        return {{}}

    @hookimpl
    def reward(self, rollout):
        if {place!r} == "reward":
            end()
        return Score(torch.zeros(len(rollout)))


class Odd(Numbers):
    def examples(self, split):
        if {place!r} == "examples":
            end()
        return super().examples(split)
"""


def ended(folder: Path, place: str, end: str) -> subprocess.CompletedProcess[str]:
    """`rlalign run` with a component that ends the process at some place, as an installed plugin would be."""
    (folder / "mine.py").write_text(BODY.format(place=place, end=indent(dedent(end), "    ")))
    (folder / "mine-1.0.dist-info").mkdir()
    (folder / "mine-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (folder / "mine-1.0.dist-info/entry_points.txt").write_text(
        "[rlalign]\nguest = mine:Guest\nodd = mine:Odd\nonce = rlalign.testing.losses:PolicyGradient\n"
        "logits-of-tests = rlalign.testing.logits:Logits\n"
    )
    (folder / "pipeline.yaml").write_text(
        "task: odd\npolicy: {logits-of-tests: {hidden: 5}}\nrewards: [guest]\nalgorithm: once\n"
        "generation: {samples: 2, max_new_tokens: 4}\ntrain: {iterations: 2, prompts: 2}\n"
    )
    code = "import sys; sys.path.insert(0, '.'); from rlalign.cli.commands import program; program()"
    command = [sys.executable, "-c", code, "run", "pipeline.yaml", "--plain"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_an_end_inside_a_reward_is_no_success(name: str, tmp_path: Path) -> None:
    got = ended(tmp_path, "reward", ENDS[name])
    assert got.returncode != 0, got.stdout
    assert not list(tmp_path.glob("runs/*/model"))
    if name == "a thread":
        assert "os._exit(0)" in got.stderr and "thread mine" in got.stderr
    elif name not in NAMED_ONLY_BY_SIGNAL:
        assert got.returncode == 1 and "error: `reward` of `guest` (mine, " in got.stderr, got.stderr
        assert "Traceback" not in got.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["construction", "setup", "state", "examples"])
@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)"])
def test_an_end_elsewhere_is_no_success(place: str, end: str, tmp_path: Path) -> None:
    got = ended(tmp_path, place, end)
    assert got.returncode in (1, 2), got.stdout
    assert ("`odd`" if place == "examples" else "`guest`") in got.stderr
    assert "SystemExit" in got.stderr and "Traceback" not in got.stderr


@pytest.mark.slow
def test_without_an_end_the_same_run_is_a_success(tmp_path: Path) -> None:
    got = ended(tmp_path, "nowhere", "pass")
    assert got.returncode == 0, got.stderr
    assert list(tmp_path.glob("runs/*/model"))
