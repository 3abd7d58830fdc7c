"""How long this machine takes in half precision: a processor without instructions for it is slower, not faster."""

from __future__ import annotations

import time

import torch

from rlalign.running.workspace import Workspace

SLOW = 1.5
"""From so many times float32's time on it is told."""
_SHAPE = (256, 512, 512)
_TRIES = 4


def note_if_slow(space: Workspace) -> None:
    """Measure it where a phase computes in half precision on a CPU, and say what was found if it is slow."""
    halves = any(phase.train.dtype == "bfloat16" for phase in space.pipeline.phases)
    if halves and space.device.type == "cpu" and (times := slowdown()) > SLOW:
        space.note_once(
            "train.dtype: bfloat16:",
            "slow",
            f"on this processor a product of matrices took {times:.1f} times as long as in float32, so "
            "`dtype: float32` will be much faster; half precision saves memory only, and that with `weights: bfloat16`",
        )


def slowdown() -> float:
    """The time of a product of matrices in bfloat16 over that in float32: the least of some tries, in turns."""
    n, c, d = _SHAPE
    full = torch.ones(n, c), torch.ones(c, d)
    half = full[0].bfloat16(), full[1].bfloat16()
    found: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(_TRIES):
        for x, y in (full, half):
            started = time.perf_counter()
            x @ y
            found[x.dtype].append(time.perf_counter() - started)
    return min(found[torch.bfloat16]) / min(found[torch.float32])
