"""Whatever is killed, fails or is full: nothing is counted twice, nothing is lost. Real processes throughout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from .conftest import SMALL, call, ledger_of

pytestmark = pytest.mark.slow

ALL = 6
FULL = """
import resource

import torch

from rlalign import Component, Score, hookimpl


class Full(Component):
    \"\"\"From here on no file of this process can grow beyond a few bytes.\"\"\"

    @hookimpl
    def reward(self, rollout):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return Score(torch.zeros(len(rollout)))


components = {"full-disk": Full}
"""
HELD = """
import os, time
from pathlib import Path


def of_run(run):
    if run.planned.key == "main/steep/rloo/1":
        Path("held").write_text(str(os.getpid()))
        time.sleep(600)
    return {}
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(SMALL, tmp_path))


def begin(*more: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("rlalign")), "bench", "small.yaml", "run", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"it ended and never said {text}"


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "small-results/small.jsonl").read_text().splitlines()]


def whole(folder: Path) -> list[str]:
    """Every run is an entry, and there once."""
    ledger = ledger_of(folder / "small.yaml")
    assert ledger.missing == []
    keys = [one.key for one in ledger.entries]
    assert len(set(keys)) == len(keys) == ALL
    return keys


def test_a_killed_runner_goes_on(suite, tmp_path):
    """Killed twice, each time after a run that is over: each kill costs at most the runs in progress."""
    for left in (ALL, ALL - 1):
        process = begin("--jobs", "2")
        until(process, f"1/{left}  ")
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert psutil.wait_procs(family, timeout=20)[1] == []
        ledger = ledger_of(suite)
        assert len(ledger.entries) + len(ledger.missing) == ALL
    assert call("small.yaml", "run", "--jobs", 2)[0] == 0
    whole(tmp_path)
    assert len(rows(tmp_path)) == ALL  # as many as if nothing had happened


def test_a_killed_run_is_named_and_made_again(suite, tmp_path):
    suite.write_text(suite.read_text() + "code: [held.py]\n")
    (tmp_path / "held.py").write_text(HELD)
    process = begin("--jobs", "2")
    until(process, "5/6  ")  # all but the one that is held
    os.kill(int((tmp_path / "held").read_text()), signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == 1
    assert "ended by signal 9 (out of memory?)" in said and "try it again with --again" in said
    assert [row["status"] for row in rows(tmp_path)].count("failed") == 1
    ledger = ledger_of(suite)
    assert len(ledger.entries) == ALL - 1
    assert ledger.missing == ["steep/rloo/1: failed: ended by signal 9 (out of memory?)"]
    assert call("small.yaml", "run")[0] == 1  # it stays named until it is tried again
    (tmp_path / "held.py").write_text("")
    assert call("small.yaml", "run", "--again")[0] == 0
    whole(tmp_path)


def test_a_run_that_fails_is_named_and_the_others_go_on(suite, tmp_path):
    suite.write_text(suite.read_text() + "code: [wrong.py]\n")
    (tmp_path / "wrong.py").write_text(
        "def of_run(run):\n    if run.planned.key == 'main/steep/rloo/1':\n        raise KeyError('x')\n    return {}\n"
    )
    status, said = call("small.yaml", "run", "--jobs", 2)
    assert status == 1
    assert "failed: main/steep/rloo/1: KeyError: 'x'" in said
    assert ledger_of(suite).missing == ["steep/rloo/1: failed: KeyError: 'x'"]
    (tmp_path / "wrong.py").write_text("")
    assert call("small.yaml", "run", "--again")[0] == 0
    whole(tmp_path)


def test_a_full_disk_for_one_run(suite, tmp_path):
    """One run can write nothing: not its logs, not its checkpoint, not even why it failed."""
    text = suite.read_text().replace(
        "flat: {set:", "flat: {arms: {rloo: {rewards: [bandit-payout, {kl: {coef: 0.5}}, full-disk]}}, set:"
    )
    suite.write_text(text + "code: [full.py]\n")
    (tmp_path / "full.py").write_text(FULL)
    status, said = call("small.yaml", "run", "--jobs", 2)
    assert status == 1
    assert "failed: main/flat/rloo/0: ended by exit status 1 (a full disk?)" in said
    ledger = ledger_of(suite)
    assert ledger.missing == ["flat/rloo/0: failed: ended by exit status 1 (a full disk?)"]
    assert len(ledger.entries) == ALL - 1
    (tmp_path / "full.py").write_text(FULL.replace("resource.setrlimit", "print"))
    assert call("small.yaml", "run", "--again")[0] == 0
    whole(tmp_path)


def test_a_full_disk_for_the_results(suite, tmp_path):
    """What cannot be written down is told, and counts when there is room again: it is not made a second time."""

    def little() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    command = [str(Path(sys.executable).with_name("rlalign")), "bench", "small.yaml", "run"]
    done = subprocess.run(command, preexec_fn=little, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "cannot be written down: File too large; what is done is kept" in done.stderr
    there = rows(tmp_path)  # each line is whole
    assert 1 <= len(there) < ALL
    (left,) = (tmp_path / "runs/small").glob("main+*.json")
    before = left.read_bytes()
    status, said = call("small.yaml", "run")
    assert status == 0
    assert f"main: {len(there)} of 6 runs are there" in said
    assert before + b"\n" in (tmp_path / "small-results/small.jsonl").read_bytes()
    whole(tmp_path)
    assert (
        signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    )  # by Python: such a write is an error like any other
