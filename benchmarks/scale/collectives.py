"""What processes that share a run tell each other: calls and bytes of an iteration, and what it costs them.

python -m benchmarks.scale.collectives              # 1, 2 and 4 processes over gloo
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.common import shapes
from benchmarks.common.machine import about

RESULT = Path(__file__).with_name("results") / "collectives.json"
RANKS = (1, 2, 4)
PROMPTS, SAMPLES, PROMPT, NEW = 8, 4, 16, 48
FEW, MANY = 2, 6
"""Iterations of the two runs whose difference is what an iteration takes: beginning and ending a run cancel out."""
WAYS = {
    "rloo": {"algorithm": "rloo"},
    "rloo, cut": {"algorithm": "rloo", "distributed": {"shard": True}},
    "ppo": {"algorithm": "ppo"},
}


class Counted:
    """How often ranks talk, how many bytes each of them hands over, and how long it is at it, waiting included."""

    TALK = (
        "all_reduce",
        "all_gather",
        "all_gather_single",
        "reduce_scatter_single",
        "broadcast",
        "all_to_all_single",
    )

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seconds = 0.0

    def __enter__(self) -> Counted:
        self._were = {name: getattr(dist, name) for name in self.TALK if hasattr(dist, name)}
        for name, real in self._were.items():
            setattr(dist, name, self._counting(name, real))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._were.items():
            setattr(dist, name, real)

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            held = [x for x in (*given, *named.values()) if isinstance(x, torch.Tensor)]
            self.calls[name] += 1
            if name != "broadcast" or given[1:] == (dist.get_rank(),):  # else it is another's
                self.bytes[name] += (max if "scatter" in name else min)(x.nbytes for x in held)
            began = time.perf_counter()
            left = real(*given, **named)
            self.seconds += time.perf_counter() - began
            assert left is None, f"{name} goes on in the background"
            return left

        return call


def pipeline(folder: Path, way: str, iterations: int) -> dict[str, Any]:
    """An iteration of 32 responses, in float32; the reward, a length, costs nothing."""
    said = WAYS[way]
    samples = 1 if said["algorithm"] == "ppo" else SAMPLES
    return {
        "task": {
            "dataset": {"path": str(folder / "prompts.jsonl"), "prompt": "prompt", "splits": {"train": 1.0}}
        },
        "policy": {"causal-lm": {"path": str(folder), "tokenizer": str(shapes.tokenizer_of(folder))}},
        "generation": {"samples": samples, "max_new_tokens": NEW, "min_new_tokens": NEW},
        "rewards": ["text-length", {"kl": {"coef": 0.05}}],
        "train": {"iterations": iterations, "prompts": PROMPTS * SAMPLES // samples, "lr": 1e-6},
        "checkpoints": {"every": 1000, "last": 1},
        "device": "cpu",
        **said,
    }


def worker(folder: Path, out: Path, ways: list[str], rounds: int) -> None:
    """One process of each run, one run after the other; the first of a way is for what is done once."""
    import rlalign

    found: dict[str, dict[str, Any]] = {}
    for way in ways:
        cpu, wall, talking = [], [], []
        for turn in range(-1, rounds):
            runs = []
            for iterations in (FEW, MANY):
                loaded = rlalign.load(pipeline(folder, way, iterations))
                began, clock = time.process_time(), time.perf_counter()
                with Counted() as counted:
                    name = f"{way.replace(', ', '-')}-{turn}-{iterations}"
                    rlalign.run(loaded, root=out / "runs", name=name, display=False)
                runs.append((time.process_time() - began, time.perf_counter() - clock, counted))
            (few_cpu, few_wall, few), (many_cpu, many_wall, many) = runs
            if turn >= 0:
                cpu.append((many_cpu - few_cpu) / (MANY - FEW))
                wall.append((many_wall - few_wall) / (MANY - FEW))
                talking.append((many.seconds - few.seconds) / (MANY - FEW))
        found[way] = {
            "cpu": cpu,
            "wall": wall,
            "talking": talking,
            "calls": {name: (n - few.calls[name]) / (MANY - FEW) for name, n in many.calls.items()},
            "bytes": {name: (n - few.bytes[name]) / (MANY - FEW) for name, n in many.bytes.items()},
        }
    (out / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def measured(folder: Path, ways: list[str], ranks: int, rounds: int) -> dict[str, Any]:
    """By way, an iteration of so many processes: seconds of all their processors, calls and bytes of one of them.

    And of each: the seconds that pass, and those of them in which it talks to the others, or waits for them.
    """
    with tempfile.TemporaryDirectory() as place:
        begin = [sys.executable]
        if ranks > 1:
            begin += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        asked = [
            "-m",
            "benchmarks.scale.collectives",
            "--worker",
            str(folder),
            place,
            "--rounds",
            str(rounds),
        ]
        done = subprocess.run(
            [*begin, *asked, "--ways", *ways],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{ranks} processes: {done.stderr}")
        said = [json.loads(Path(place, f"{rank}.json").read_text()) for rank in range(ranks)]
    return {
        way: {
            "cpu": sorted(map(sum, zip(*(each[way]["cpu"] for each in said), strict=True))),
            "wall": [each[way]["wall"] for each in said],
            "talking": [each[way]["talking"] for each in said],
            "share": [
                statistics.median(t / w for t, w in zip(each[way]["talking"], each[way]["wall"], strict=True))
                for each in said
            ],
            "calls": {name: n for name, n in said[0][way]["calls"].items() if n},
            "bytes": {name: n for name, n in said[0][way]["bytes"].items() if n},
        }
        for way in ways
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--shape", default="qwen", choices=list(shapes.SHAPES))
    ask.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    ask.add_argument("--ranks", nargs="*", type=int, default=list(RANKS))
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--out", type=Path, default=RESULT)
    ask.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    said = ask.parse_args()
    if said.worker:
        worker(*said.worker, said.ways, said.rounds)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = shapes.lay(said.shape, Path(place))
        words = " ".join(f"w{i}" for i in range(shapes.FIRST, shapes.FIRST + PROMPT))
        rows = (json.dumps({"prompt": f"w{shapes.FIRST + i} {words}"}) for i in range(64))
        (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
        report: dict[str, Any] = {"machine": about(), "shape": said.shape, "rows": {}}
        for ranks in said.ranks:
            report["rows"][ranks] = measured(folder, said.ways, ranks, said.rounds)
            said.out.parent.mkdir(exist_ok=True)
            said.out.write_text(json.dumps(report, indent=1) + "\n")
            print(ranks, *report["rows"][ranks].items(), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
