"""What a checkpoint after every iteration costs beside the iteration; prints JSON.

python -m benchmarks.speed.checkpoints tiny/rloo/S/float32 --folder MODEL

In turn in one run: an iteration; one while the checkpoint before it is written, as with `checkpoints: {every: 1}`;
and a checkpoint with nothing beside it, whose seconds are all its own.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.common.timing import alternating, compared, now, since, summary
from benchmarks.speed.ours import Ours
from benchmarks.speed.work import row_of

from rlalign.running.checkpointing import Saver

WARM_UP, ROUNDS = 1, {True: 4, False: 15}
"""Rounds that do not count, and that do: of a large model, and of another."""


def measured(ours: Ours, rounds: int) -> dict[str, Any]:
    """The phase of `ours` must have two iterations a round. No two checkpoints are of the same weights."""
    session, phase = ours.bench.session, ours.bench.phase
    saver = Saver(session, session.best)
    stands: list[float] = []

    def beside() -> None:
        saver.save(phase)
        ours.step()
        saver.wait()

    def alone() -> None:
        then = now()
        saver.save(phase)
        stands.append(since(then)[1])
        saver.wait()

    try:
        spent = alternating({"beside": beside, "alone": alone, "plain": ours.step}, rounds, WARM_UP)
    finally:
        saver.close()
    last = max(session.dir.checkpoints.iterdir())
    return {
        "step": compared(spent["plain"], spent["beside"]),
        "checkpoint": {
            at: summary([one[i] for one in spent["alone"]]) for i, at in enumerate(("cpu", "wall"))
        },
        "share": summary(
            [one[0] / (one[0] + step[0]) for one, step in zip(spent["alone"], spent["plain"], strict=True)]
        ),
        "stands still": summary(stands[WARM_UP:]),
        "bytes": sum(path.stat().st_size for path in last.rglob("*") if path.is_file()),
        "n": rounds,
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("row")
    ask.add_argument("--folder", type=Path, required=True)
    ask.add_argument("--rounds", type=int)
    said = ask.parse_args()
    row, before = row_of(said.row), os.getloadavg()[0]
    rounds = said.rounds or ROUNDS[row.large]
    with tempfile.TemporaryDirectory() as place:
        found = measured(Ours(row, said.folder, Path(place), 2 * (WARM_UP + rounds)), rounds)
    print(json.dumps(found | {"threads": torch.get_num_threads(), "load": [before, os.getloadavg()[0]]}))


if __name__ == "__main__":
    main()
