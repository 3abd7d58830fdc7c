"""Real commands on several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from comparing import EXAMPLES, ROOT, tensors

SHORT = (
    "train.prompts=6",
    "train.passes=null",
    "train.dtype=float64",
    "evaluate=null",
    "checkpoints.every=1",
)
"""For an example whose run is ended before its time."""
BANDIT = str(Path(__file__).with_name("bandit.yaml"))
CUT = (str(EXAMPLES / "algorithms/rloo.yaml"), *SHORT, "distributed.shard=true")
"""A network whose weights are cut over the processes."""
BEGUN = {
    "whole": (BANDIT, "train.iterations=60", "evaluate.every=20"),
    "cut": (*CUT, "train.iterations=8"),
}


class Command:
    """`rlalign run --processes`, and its processes."""

    def __init__(self, *arguments: str, runs: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlalign", "run", *arguments, "--runs", str(runs), "--plain"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def rank(self, number: int) -> int:
        """The process of a rank."""
        return rank_of(self._process.pid, number)

    def ranks(self, count: int) -> list[int]:
        """The processes of all ranks, once they are there."""
        end = time.monotonic() + 120
        while True:
            try:
                return [self.rank(number) for number in range(count)]
            except (AssertionError, OSError):
                assert time.monotonic() < end and self._process.poll() is None, self.end()
                time.sleep(0.02)

    def signal(self, which: int) -> None:
        self._process.send_signal(which)

    def signal_all(self, which: int, ranks: int) -> None:
        """To the launcher and to so many ranks, as who ends a group of processes does."""
        for process in [self._process.pid, *map(self.rank, range(ranks))]:
            os.kill(process, which)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it printed."""
        said, _ = self._process.communicate(timeout=600)
        return self._process.returncode, said


def undisturbed(which: str, folder: Path) -> Path:
    """A run on two processes of one machine to which nothing happens."""
    code, said = Command(*BEGUN[which], "--processes", "2", "--name", which, runs=folder).end()
    assert code == 0, said
    return folder / which


def rank_of(launcher: int, number: int) -> int:
    """The process of a rank, among those that another process began."""
    for thread in os.listdir(f"/proc/{launcher}/task"):
        for child in Path(f"/proc/{launcher}/task/{thread}/children").read_text().split():
            if f"\0RANK={number}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
                return int(child)
    raise AssertionError(f"there is no rank {number}")


def wait_for(path: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def bits(run: Path) -> dict[str, bytes]:
    return {name: x.numpy().tobytes() for name, x in tensors(run).items()}
