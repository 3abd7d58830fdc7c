"""One row in a process of its own; prints what was measured as JSON.

python -m benchmarks.speed.measure tiny/rloo/S/float32 --folder MODEL           both sides, step by step in turn
… --side ours|trl                                                               one of them: its memory
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.common.timing import compared
from benchmarks.speed.work import Row, row_of

MEMORY_STEPS = 2


def both(row: Row, folder: Path, place: Path, warm_up: int, count: int) -> dict[str, Any]:
    """Their step, then ours, and so on."""
    from benchmarks.speed.ours import Ours
    from benchmarks.speed.theirs import Clock, trainer

    steps = warm_up + count
    ours = Ours(row, folder, place, steps)
    clock = Clock(ours.step)
    trainer(row, folder, place, steps, clock).train()
    found: dict[str, Any] = {"step": compared(ours.steps[warm_up:], clock.steps[warm_up:])}
    if clock.sampling is not None:
        found["rollout"] = compared(ours.rollouts[warm_up:], clock.rollouts[warm_up:])
    return found | {"n": count, "warm_up": warm_up, "trl": version("trl")}


def alone(row: Row, folder: Path, place: Path, side: str) -> None:
    """A few steps of one side."""
    if side == "ours":
        from benchmarks.speed.ours import Ours

        ours = Ours(row, folder, place, MEMORY_STEPS)
        for _ in range(MEMORY_STEPS):
            ours.step()
    else:
        from benchmarks.speed.theirs import Clock, trainer

        trainer(row, folder, place, MEMORY_STEPS, Clock(lambda: None)).train()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("row")
    ask.add_argument("--folder", type=Path, required=True)
    ask.add_argument("--side", choices=("both", "ours", "trl"), default="both")
    ask.add_argument("--steps", type=int, help="steps that count")
    said = ask.parse_args()
    row = row_of(said.row)
    warm_up, count = row.steps
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        if said.side == "both":
            found = both(row, said.folder, Path(place), warm_up, said.steps or count)
        else:
            alone(row, said.folder, Path(place), said.side)
            found = {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
    found |= {"threads": torch.get_num_threads(), "load": [before, os.getloadavg()[0]]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
