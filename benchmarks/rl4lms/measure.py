"""One row in a process of its own; prints what was measured as JSON.

    python -m benchmarks.rl4lms.measure PIPELINE FOLDER

Nothing is saved on the way: no checkpoints, no exported model, as in the record.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()


def run(pipeline: Path, folder: Path) -> dict[str, Any]:
    """The only phase of a pipeline from start to end, and the seconds and bytes it took."""
    import torch

    from rlalign.config.load import load_pipeline
    from rlalign.records import logs
    from rlalign.running import loop
    from rlalign.running.iterating import iterate
    from rlalign.running.view import open_phase
    from rlalign.testing.bench import Silence

    session = loop.start(load_pipeline(pipeline), root=folder, display=Silence())
    phase = open_phase(session, session.plans[0], 0, 0)
    phase.start()
    setup = time.perf_counter() - STARTED
    spent: list[dict[str, float]] = []
    before = _clocks()
    for _ in iterate(phase):
        now = _clocks()
        wall, own, all_of_them = (b - a for a, b in zip(before, now, strict=True))
        others = max(0.0, all_of_them - own) / wall
        spent.append({"wall": wall, "cpu": own, "others": others, "load": os.getloadavg()[0]})
        before = now
    session.logs.close()
    session.dir.close()
    return {
        "setup": setup,
        "threads": torch.get_num_threads(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "iterations": [
            line | more
            for line, more in zip(logs.read(session.dir.path / "metrics.jsonl"), spent, strict=True)
        ],
    }


def _clocks() -> tuple[float, float, float]:
    """Seconds on the clock, of this process on all cores, and of all processes (Linux tells)."""
    wall, own, stat = time.perf_counter(), time.process_time(), Path("/proc/stat")
    if not stat.exists():
        return wall, own, own
    user, nice, system, _, _, irq, softirq = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return wall, own, (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]))))
