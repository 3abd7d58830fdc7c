"""Files and overrides changed at random, in the ways that files go wrong: each ends well or in words.

`fuzz/` makes the inputs; each follows from its number, so that one that failed comes again. None may crash, hang,
write outside its folder, or import the code that lies beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
COUNTS = {"pipelines": 9_000, "overrides": 5_000, "rows": 4_000, "runs": 1_500, "models": 500}
FEW = 12


def fuzz(target: str, first: int, count: int, seconds: float) -> None:
    """Run these cases in a process of their own; what ended badly is said with its number."""
    command = [sys.executable, str(FUZZ), target, "--first", str(first), "--count", str(count)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    said = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]  # libraries print too
    wrong = [f"{one['case']}: {one['wrong']}" for one in said if "wrong" in one]
    assert not wrong, f"{len(wrong)} of {count} {target}:\n" + "\n".join(wrong[:30])
    assert said and said[-1] == {"done": count}, f"died in {said[-1:]}: {done.stderr[-2000:]}"


@pytest.mark.parametrize(
    "target",
    [
        each if each in ("pipelines", "models") else pytest.param(each, marks=pytest.mark.slow)
        for each in COUNTS
    ],
)
def test_some_inputs(target: str) -> None:
    fuzz(target, 0, FEW, 120)


@pytest.mark.slow
@pytest.mark.parametrize("target", COUNTS)
def test_many_inputs(target: str) -> None:
    fuzz(target, FEW, COUNTS[target], 1_800)


def test_there_are_twenty_thousand() -> None:
    assert sum(COUNTS.values()) >= 20_000
