"""Runs of the same pipelines on one process and on several, and how far apart they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from rlalign.records import logs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TINY = ("train.iterations=3", "train.prompts=6", "train.passes=null", "train.dtype=float64")


MORE = {
    **{name: ["phases.value.train.prompts=20"] for name in ("a-lol", "a-lol-seq2seq")},
    # Where rounding grows: float32 parts of T5, and what learns from nothing but rounding.
    **{name: ["train.iterations=2"] for name in ("ppo-seq2seq", "trpo-seq2seq")},
    # In its first iteration a KL that is 0 but for rounding would decide between responses that earn the same.
    "raft": [
        f"folder={ROOT / 'tests/world'}",
        "rewards=[toy-sentiment,{kl: {coef: 0.05}},{'odd:Apart': {}, weight: 0.001}]",
    ],
    "toy-dates": ["phases.imitate.train.iterations=2", "phases.align.train.iterations=2"],
}
"""What an example cannot do without."""


def job(file: str, *overrides: str) -> dict[str, Any]:
    """An example, small and in float64."""
    said = yaml.safe_load((EXAMPLES / file).read_text())
    phases = [one["name"] for one in said["phases"]] if "phases" in said else []
    small = [f"phases.{phase}.{one}" for phase in phases for one in TINY] or [*TINY]
    if "repeat" in said:
        small.append("repeat=1")
    if "evaluate" in said:
        small += ["evaluate.examples=8", "evaluate.every=null"]
    small += MORE.get(Path(file).stem, [])
    return {"file": str(EXAMPLES / file), "overrides": [*small, *overrides]}


def learners() -> set[str]:
    """The installed components that learn: algorithms."""
    return {
        entry.name
        for entry in entry_points(group="rlalign")
        if any(hasattr(getattr(entry.load(), hook, None), "rlalign_impl") for hook in ("loss", "update"))
    }


def run(
    folder: Path,
    jobs: Mapping[str, dict[str, Any]],
    processes: int,
    script: str = "together.py",
    **environment: str,
) -> str:
    """Run them all in so many processes that begin once; what these printed."""
    folder.mkdir(parents=True)
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    begin = [sys.executable]
    if processes > 1:
        begin += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*begin, str(Path(__file__).with_name(script)), str(folder), str(listed)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = list(logs.read(run / "metrics.jsonl"))
    return [{name: x for name, x in row.items() if not name.startswith("time/")} for row in rows]


def learned(run: Path) -> list[dict[str, Any]]:
    path = run / "learned.jsonl"
    return list(logs.read(path)) if path.exists() else []


def apart(one: Path, other: Path) -> tuple[float, str, float, str]:
    """The largest difference of a metric, relative where it is large, and of a number of the last checkpoint.

    `accuracy` counts which of two numbers is larger, also where they are equal but for rounding; it is left out.
    """
    worst = (0.0, "")
    rows, others = metrics(one), metrics(other)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, another in zip(rows, others, strict=True):
        for name, x in row.items():
            if name.endswith("/accuracy"):
                continue
            y = another[name]
            if isinstance(x, float) and isinstance(y, float):
                worst = max(worst, (abs(x - y) / max(1.0, abs(x)), name))
            else:
                assert x == y, name
    told, others = learned(one), learned(other)
    assert len(told) == len(others)
    for row, another in zip(told, others, strict=True):
        assert row.keys() == another.keys() and row["response"] == another["response"]
        for name in {"advantage", "reward"} & row.keys():
            x, y = row[name], another[name]
            worst = max(worst, (abs(x - y) / max(1.0, abs(x)), f"{name} in learned.jsonl"))
    far = (0.0, "")
    mine, its = tensors(one), tensors(other)
    assert mine.keys() == its.keys()
    for name, t in mine.items():
        assert t.shape == its[name].shape, name
        if t.numel() and not name.endswith("/packed"):  # bytes of numbers
            far = max(far, (float((t.double() - its[name].double()).abs().nan_to_num().max()), name))
    return *worst, *far


def tensors(run: Path) -> dict[str, Any]:
    """Those of the last checkpoint, put together where they were cut over processes."""
    last = max((run / "checkpoints").glob("[0-9]*"))
    found = {
        f"{file.relative_to(last)}/{name}": x
        for file in last.rglob("*.safetensors")
        if not file.name.startswith("shard-")
        for name, x in load_file(file).items()
    }
    for folder in {file.parent for file in last.rglob("shard-*")}:
        for name, x in put_together(folder).items():
            found[f"{folder.relative_to(last)}.safetensors/{name}"] = x
    return {name: x for name, x in found.items() if x.numel()}


def put_together(folder: Path) -> dict[str, Any]:
    """Whole tensors, of the pieces in a folder: each is a run of rows."""
    pieces: dict[str, dict[int, Any]] = {}
    for path in folder.glob("shard-*"):
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118
                start, *others = told[name]["saved_offsets"]
                assert not any(others)
                pieces.setdefault(name, {})[start] = file.get_tensor(name)
    return {name: torch.cat([x for _, x in sorted(found.items())]) for name, found in pieces.items()}
