"""Where a step of ours goes: matrix products, attention, other kernels, and what is none; prints JSON.

python -m benchmarks.speed.profile tiny/rloo/S/float32 --folder MODEL
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.common.timing import alternating, now, since
from benchmarks.speed.ours import Ours
from benchmarks.speed.work import row_of
from torch.profiler import ProfilerActivity

PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
"""Matrix products, and which of their inputs is the first factor."""
LARGE = 1024
"""A product of matrices of so many rows and columns: the rate that this machine reaches."""


def kind_of(name: str) -> str:
    """What a kernel counts as."""
    name = name.removeprefix("aten::")
    if name in PRODUCTS:
        return "products"
    return "attention" if name.startswith("_scaled_dot_product") else "other"


def operations(events: Sequence[Any]) -> float:
    """Multiplications and additions of the matrix products, by the shapes of their factors."""
    found = 0
    for event in events:
        name = event.key.removeprefix("aten::")
        if name in PRODUCTS:
            left, right = event.input_shapes[PRODUCTS[name] :][:2]
            found += 2 * math.prod(left) * right[-1] * event.count
    return found


def profiled(ours: Ours, dtype: torch.dtype, count: int) -> dict[str, Any]:
    """Steps with the profiler and without, in turn: it says which kernels, and costs time itself."""
    seen: list[dict[str, float]] = []
    size = torch.randn(LARGE, LARGE).to(dtype)

    def watched() -> None:
        with torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profile:
            then = now()
            ours.step()
            cpu, wall = since(then)
        events = [e for e in profile.key_averages(group_by_input_shape=True) if e.key.startswith("aten::")]
        spent = dict.fromkeys(("products", "attention", "other"), 0.0)
        for event in events:
            # by the clock: beside other programs that is more than the processor gave it
            spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6 * cpu / wall
        seen.append(spent | {"operations": operations(events)})

    ways = {"step": ours.step, "watched": watched, "large": lambda: size @ size}
    spent = alternating(ways, count)
    found: dict[str, Any] = {key: statistics.median(one[key] for one in seen[1:]) for key in seen[0]}
    step, large = (statistics.median(cpu for cpu, _ in spent[way]) for way in ("step", "large"))
    return found | {"step": step, "large product's rate": 2 * LARGE**3 / large, "n": count}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("row")
    ask.add_argument("--folder", type=Path, required=True)
    ask.add_argument("--steps", type=int, help="steps that count; as many are made with the profiler")
    said = ask.parse_args()
    row = row_of(said.row)
    count = said.steps or row.steps[1] // 2  # each is made twice
    with tempfile.TemporaryDirectory() as place:
        ours = Ours(row, said.folder, Path(place), 2 * (count + 1))
        found = profiled(ours, getattr(torch, row.dtype), count)
    print(json.dumps(found | {"threads": torch.get_num_threads(), "load": [os.getloadavg()[0]]}))


if __name__ == "__main__":
    main()
