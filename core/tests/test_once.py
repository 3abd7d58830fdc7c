"""What is made once: whole or not there, by one process while the others wait."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlalign.once import once

MAKER = """
import sys, time
from pathlib import Path
from rlalign.once import once

def make(part):
    part.mkdir()
    (part / "half").write_text("x")
    with open(sys.argv[1] + "/made", "a") as file:
        file.write("m")
    time.sleep(float(sys.argv[2]))
    (part / "rest").write_text("y")

once(Path(sys.argv[1]) / "thing", make, waits=lambda: print("waits", flush=True))
print(sorted(p.name for p in (Path(sys.argv[1]) / "thing").iterdir()))
"""


def maker(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def until(there: Path) -> None:
    for _ in range(600):
        if there.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{there} never came")


def test_several_processes_make_it_once(tmp_path: Path) -> None:
    processes = [maker(tmp_path, 1.0) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [lines[-1] for lines in said] == ["['half', 'rest']"] * 3
    assert (tmp_path / "made").read_text() == "m"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "thing"], "locks and halves are gone"


def test_one_that_is_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    first = maker(tmp_path, 60)
    until(tmp_path / "made")
    waiting = maker(tmp_path, 0)
    assert waiting.stdout is not None and waiting.stdout.readline() == "waits\n"
    assert not (tmp_path / "thing").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert waiting.communicate(timeout=60)[0] == "['half', 'rest']\n"
    assert (tmp_path / "made").read_text() == "mm"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "thing"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fails(part: Path) -> None:
        part.write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        once(tmp_path / "thing", fails)
    assert list(tmp_path.iterdir()) == []
    once(tmp_path / "thing", lambda part: part.write_text("whole") and None)
    once(tmp_path / "thing", fails)  # it is there
    assert (tmp_path / "thing").read_text() == "whole"


@pytest.mark.parametrize("folder", [False, True])
def test_where_files_cannot_be_locked_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    def unsupported(held: int, how: int) -> None:
        raise OSError(37, "No locks available")

    def make(part: Path) -> None:
        if folder:
            part.mkdir()
            (tmp_path / "thing").mkdir()  # another is faster
            (tmp_path / "thing" / "x").write_text("first")
            (part / "x").write_text("second")
        else:
            part.write_text("first")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    once(tmp_path / "thing", make)
    found = tmp_path / "thing" / "x" if folder else tmp_path / "thing"
    assert found.read_text() == "first"
    assert not list(tmp_path.glob("*.part"))
