"""Where a card's time goes: the most costly kernels of an iteration's parts, and how often the host waits for it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.iterations import MadeThere
from benchmarks.gpu.roofline import timed
from benchmarks.speed.work import COMPONENTS
from torch.profiler import ProfilerActivity

from rlalign.testing.bench import Bench

MOST = 14
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch")


def profile(said: dict[str, Any], device: str) -> dict[str, Any]:
    """The rollout and the gradient of the second iteration."""
    with tempfile.TemporaryDirectory() as root:
        held = Bench(Path(root), said, COMPONENTS | {"made-there": MadeThere})
        batch = held.batch()
        ways = {"rollout": held.rollout, "gradient": lambda: held.gradient(batch)}
        return {part: kernels(way, device) for part, way in ways.items()}


def kernels(way: Any, device: str) -> dict[str, Any]:
    way()
    acts = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with torch.profiler.profile(activities=acts) as seen:
        seconds = timed(way)
    events = seen.key_averages()
    key = "self_device_time_total" if device != "cpu" else "self_cpu_time_total"
    top = sorted(events, key=lambda e: -getattr(e, key))[:MOST]
    return {
        "seconds": seconds,
        "waits": sum(e.count for e in events if e.key in WAITS),
        "launches": sum(e.count for e in events if e.key in LAUNCHES),
        "card busy": sum(e.self_device_time_total for e in events if e.device_type.name == "CUDA") / 1e6,
        "top": [{"name": e.key[:90], "ms": getattr(e, key) / 1e3, "count": e.count} for e in top],
    }
