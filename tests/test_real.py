"""`make demo-real`: its prompts, its interval, what it installs; and, where the packages are, a short form of it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "examples/real"
MAKEFILE = (ROOT / "Makefile").read_text()


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


demo = module("demo_real")
LACKING = [name for name in demo.PACKAGES if importlib.util.find_spec(name) is None]
SHORT = (
    "train.iterations=1", "train.prompts=2", "generation.samples=2", "generation.max_new_tokens=6",
    "evaluate.examples=3", "evaluate.generation.samples=2",
)  # fmt: skip


def test_what_is_judged_is_not_learned_from() -> None:
    train, val = (
        [json.loads(line)["prompt"] for line in (HERE / f"prompts/{split}.jsonl").read_text().splitlines()]
        for split in ("train", "val")
    )
    assert len(set(train)) == len(train) == 48
    assert len(set(val)) == len(val) == 24
    assert not set(train) & set(val)


def test_the_interval_is_of_prompts() -> None:
    """A gain of each prompt by the same has none; one that half of them lose has zero within."""
    before = {str(i): i / 10 for i in range(24)}
    gained = demo.difference(before, {prompt: value + 0.25 for prompt, value in before.items()})
    assert gained == pytest.approx((0.25, 0.25, 0.25))
    mixed = {prompt: value + (0.1 if i % 2 else -0.1) for i, (prompt, value) in enumerate(before.items())}
    mean, low, high = demo.difference(before, mixed)
    assert mean == pytest.approx(0)
    # The standard error is 0.1 / √24: 1.96 of them on either side.
    assert (low, high) == pytest.approx((-0.04, 0.04), abs=0.005)


def test_make_installs_what_the_demo_needs() -> None:
    installed = " ".join(re.findall(r"pip install (.*)", MAKEFILE)).replace("-", "_")
    assert [name for name in demo.PACKAGES if name not in installed] == []
    assert re.search(
        r"^demo-real: .*\n\t\$\(BIN\)/python examples/real/demo_real\.py", MAKEFILE, re.MULTILINE
    )


@pytest.mark.skipif(not LACKING, reason="all packages are there")
def test_without_its_packages_the_demo_says_which(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "demo_real.py"), "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"{', '.join(LACKING)}: not installed; `make demo-real` installs what is needed\n"


@pytest.mark.slow
@pytest.mark.skipif(
    bool(LACKING), reason=f"{', '.join(LACKING)}: not installed; `make demo-real` installs them"
)
def test_the_demo_in_short(tmp_path: Path) -> None:
    """The real models, one iteration: what is printed, and what is there afterwards."""
    command = [sys.executable, str(HERE / "demo_real.py"), "--runs", str(tmp_path), *SHORT]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    figures = re.findall(r"^  ([\w ()]+?) +(-?\d+\.\d{3}) +(-?\d+\.\d{3})$", printed, re.MULTILINE)
    assert [name for name, _, _ in figures] == list(demo.SHOWN)
    assert re.search(r"^  The judge: [+-]\d\.\d{3} on the same prompts, 95 % interval", printed, re.MULTILINE)
    assert len(re.findall(r"^    (?:before|after) +[+-]\d\.\d\d", printed, re.MULTILINE)) == 6
    assert (tmp_path / "align/model/model.safetensors").exists()
    (told,) = re.findall(r"^  to talk +\S+/rlalign (.*)$", printed, re.MULTILINE)
    talk = [sys.executable, "-m", "rlalign.cli", *shlex.split(told)]
    said = subprocess.run(talk, capture_output=True, text=True, check=True, env=environment).stdout
    assert said.count("user: My tea is cold.") == 2


@pytest.mark.slow
@pytest.mark.skipif(
    bool(LACKING), reason=f"{', '.join(LACKING)}: not installed; `make demo-real` installs them"
)
def test_its_costs_are_those_that_were_estimated(tmp_path: Path) -> None:
    """To within a fifth, in seconds of the processor and in memory."""
    options = ["train.iterations=4", "evaluate=null", "checkpoints.every=100"]
    command = [sys.executable, "-m", "rlalign.cli", "run", str(HERE / "align.yaml"), *options, "--plain"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--runs", str(tmp_path)], check=True, env=environment)
    costs = json.loads((tmp_path / "align/costs.json").read_text())["rloo"]
    for what in ("iteration", "memory"):
        assert costs["estimated"][what] == pytest.approx(costs["measured"][what], rel=0.2), what
