"""Runs of the same pipelines on one process and on several, and how far apart they are."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import rlalign
from rlalign.config.pipeline import short
from rlalign.records import logs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
REWARD_MODEL = "learned-reward/reward-model.yaml"
RECORDED = "observers=['recording:Tokens']"
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
    "reward-model": ["train.dropout=false"],
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


def tiny_encoder() -> list[str]:
    """What `REWARD_MODEL` learns with: an encoder and a few comparisons that are made here."""
    sys.path.append(str(ROOT / "plugins/rewards/model-rewards/tests"))
    from small_models import compared, folder

    return [f"policy.sequence-scorer.path={folder('bert')}", f"task.dataset={{path: {compared()}, join: ''}}"]


def learners() -> set[str]:
    """The installed components that learn: algorithms."""
    return {
        entry.name
        for entry in entry_points(group="rlalign")
        if any(hasattr(getattr(entry.load(), hook, None), "rlalign_impl") for hook in ("loss", "update"))
    }


def algorithms(jobs: Iterable[Mapping[str, Any]]) -> set[str]:
    """The components under `algorithm` of the phases of all these."""
    phases = [phase for one in jobs for phase in rlalign.load(one["file"], one["overrides"]).settings.phases]
    return {short(item.component) for phase in phases for item in phase.algorithm}


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
    told = {name: {**one, "overrides": [*one["overrides"], RECORDED]} for name, one in jobs.items()}
    listed.write_text(json.dumps(told))
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


def lines(run: Path, name: str) -> list[Any]:
    """Those of one of its logs, if it has it."""
    path = run / name
    return list(logs.read(path)) if path.exists() else []


def apart(one: Path, other: Path, key_biases: bool = True) -> tuple[float, str, float, str]:
    """The largest difference of a number in the logs, relative where it is large, and of one in the last checkpoint.

    Everything else, all tokens among it, must be equal. `accuracy` counts which of two numbers is larger, also where
    they are equal but for rounding; it is left out. `key_biases`: whether those of GPT-2's keys are compared, which no
    log-prob depends on: their gradient is rounding alone, and Adam takes whole steps by it.
    """
    worst = [(0.0, ""), *differences(metrics(one), metrics(other), "metrics.jsonl")]
    for name in ("tokens.jsonl", "learned.jsonl", "samples.jsonl"):
        worst += differences(lines(one, name), lines(other, name), name)
    far = [(0.0, "")]
    mine, its = tensors(one), tensors(other)
    assert mine.keys() == its.keys()
    for name, t in mine.items():
        assert t.shape == its[name].shape, name
        found = gap(t, its[name])
        if not key_biases and name.endswith("attn.c_attn.bias"):
            queries, _, values = found.chunk(3)
            found = torch.cat([queries, values])
        if not name.endswith("/packed"):  # bytes of numbers
            far.append((float(found.max()), name))
    return *max(worst), *max(far)


def gap(x: Any, y: Any) -> torch.Tensor:
    """How far apart numbers are: infinitely where only one is none, or is infinite."""
    x, y = (torch.as_tensor(one, dtype=torch.float64) for one in (x, y))
    same = (x == y) | (x.isnan() & y.isnan())
    return (x - y).abs().nan_to_num(math.inf, math.inf).masked_fill(same, 0.0)


def differences(x: Any, y: Any, name: str) -> Iterator[tuple[float, str]]:
    """Those of each number in what JSON says, relative where it is large; what is no number must be equal."""
    if isinstance(x, list | dict):
        assert type(x) is type(y) and len(x) == len(y), name
        keys = x.keys() if isinstance(x, dict) else range(len(x))
        assert not isinstance(x, dict) or keys == y.keys(), f"{name}: {keys ^ y.keys()}"
        for key in keys:
            if not str(key).endswith("/accuracy"):
                yield from differences(x[key], y[key], f"{name}/{key}")
    elif is_float(x) and is_float(y):
        far = float(gap(float(x), float(y)))
        if "/steps/" in name and far <= 1.001e-3 * abs(float(x)):  # by one in the last of four digits
            far = 0.0
        yield far / max(1.0, abs(float(x))) if math.isfinite(far) else far, name
    else:
        assert x == y, f"{name}: {x!r} and {y!r}"


def is_float(x: Any) -> bool:
    """As logs write them: what JSON has no number for is a text."""
    return isinstance(x, float) or x in ("nan", "inf", "-inf")


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
