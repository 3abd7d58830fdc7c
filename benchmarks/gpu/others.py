"""What other programs tell of a GPU: the tests marked `gpu`, and a suite on toys as far as time goes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


SUITES = {"grue_toy": "suite.yaml", "grue_small": "online.yaml"}


def told(command: list[str], seconds: float) -> dict[str, Any]:
    """Run it for at most so long; how it ended, and its last lines."""
    started = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
        ended, output = str(done.returncode), done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        ended = f"cut off after {seconds:.0f} s"
        output = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else late.stdout or ""
    tail = output.strip().splitlines()[-12:]
    return {"ended": ended, "seconds": time.perf_counter() - started, "tail": tail}


def tests(seconds: float) -> dict[str, Any]:
    """`make test-gpu`: passed, failed, and the names of those that failed."""
    workers = str(min(10, os.cpu_count() or 1))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", workers, "-p", "no:cacheprovider"]
    found = told(command, seconds)
    last = " ".join(found["tail"])
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    return found | counts


def suite(name: str, seconds: float) -> dict[str, Any]:
    """Runs of a suite, as many as fit; of real text once its `prepare.py` has laid that out."""
    folder = ROOT / "benchmarks" / name
    if (folder / "prepare.py").exists() and not (folder / "prepared").exists():
        return {"ended": "left out: its text is not prepared", "seconds": 0.0}
    command = [sys.executable, "-m", "rlalign.cli", "bench", str(folder / SUITES[name]), "run", "--jobs", "4"]
    return told(command, seconds)


def brief(one: dict[str, Any]) -> str:
    counts = ", ".join(f"{one[word]} {word}" for word in ("passed", "failed", "skipped") if word in one)
    return f"ended {one['ended']} after {one['seconds']:.0f} s {counts}"
