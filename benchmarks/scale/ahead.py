"""Sampling while the policy learns, beside in turn: what an iteration takes by the clock, on two cores.

OMP_NUM_THREADS=1 python -m benchmarks.scale.ahead              # a minute or two
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import shapes
from benchmarks.common.machine import about
from benchmarks.scale import collectives

RESULT = Path(__file__).with_name("results") / "ahead.json"
COPY = {"threads": 1}
WAYS: dict[str, dict[str, Any]] = {
    "the policy itself": {},
    "a copy, in turn": {"models": {"sampler": {"copies": COPY}}},
    "a copy, ahead": {"models": {"sampler": {"copies": {**COPY, "ahead": 1}}}, "mismatch": {}},
}
LEFT_OUT = 2
"""Iterations at a run's beginning that do not count: a process begins, an answer is waited for."""


def pipeline(folder: Path, way: str, iterations: int) -> dict[str, Any]:
    said = dict(WAYS[way])
    found = collectives.pipeline(folder, "rloo", iterations)
    mismatch = {"mismatch": said.pop("mismatch")} if "mismatch" in said else {}
    return {**found, **said, "train": {**found["train"], **mismatch}}


def measured(folder: Path, way: str, iterations: int) -> list[dict[str, float]]:
    """Of each iteration that counts: its seconds, and those in which the run waited for responses."""
    import rlalign

    with tempfile.TemporaryDirectory() as place:
        loaded = rlalign.load(pipeline(folder, way, iterations))
        rlalign.run(loaded, root=Path(place), name="one", display=False)
        rows = [json.loads(line) for line in (Path(place) / "one/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/rollout" in row][LEFT_OUT:-1]  # the last one asks for nothing
    return [{"seconds": row["time/iteration"], "rollout": row["time/rollout"]} for row in rows]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--shape", default="qwen", choices=list(shapes.SHAPES))
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--iterations", type=int, default=10)
    said = ask.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        folder = shapes.lay(said.shape, Path(place))
        prompts = shapes.prompts(folder, 256, collectives.PROMPT)
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / "prompts.jsonl").write_text(lines)
        before = about()
        for _ in range(said.rounds):
            for way in WAYS:  # in turn, so that what else the machine does meets all alike
                found[way] += measured(folder, way, said.iterations)
    RESULT.write_text(json.dumps({"about": before, "shape": said.shape, "ways": found}, indent=1) + "\n")
    print("| | s an iteration | of these, waiting for responses |\n|---|---|---|")
    for way, rows in found.items():
        print(f"| {way} | {spread([r['seconds'] for r in rows])} | {spread([r['rollout'] for r in rows])} |")


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}]"


if __name__ == "__main__":
    main()
