"""What this machine is for the cost model: its device by name where that is known, by short measurements else."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from rlalign.costs.machines import DEVICES, Device
from rlalign.data.limits import machine_memory

OPERATIONS = 25
"""Operations that a layer calls in a step of sampling: so many times what the smallest one takes is lost in each."""
_TRIES, _ENOUGH = 5, 0.1
"""How often something is measured, and the seconds after which no more is tried."""
_SMALL = 100
_PRODUCT = 256, 768, 768
_READ = 2048, 4096
"""Of a matrix that no cache holds."""


def this_device(device: torch.device) -> Device:
    """In half a second at most."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory, name = float(properties.total_memory), properties.name
        like = [d for d in DEVICES.values() if d.name.partition("-")[0] in name]
        known = min(like, key=lambda d: abs(d.memory - memory), default=None)
        if known is not None:
            return Device(known.name, memory, known.half, known.single, known.bandwidth, known.link)
    else:
        memory, name = float(machine_memory()), "this CPU" if device.type == "cpu" else f"this {device.type}"
    n, c, d = _PRODUCT
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        x, w = (torch.ones(size, device=device, dtype=dtype) for size in ((n, c), (c, d)))
        rates.append(2 * n * c * d / _least(lambda x=x, w=w: x @ w, device))  # type: ignore[misc]
    matrix, one = torch.ones(_READ, device=device), torch.ones(1, _READ[0], device=device)
    small = one[:, :8]
    return Device(
        name,
        memory,
        half=rates[1],
        single=rates[0],
        bandwidth=matrix.nbytes / _least(lambda: one @ matrix, device),
        link=1e9,
        cpu=device.type == "cpu",
        launch=OPERATIONS * _least(lambda: [small + small for _ in range(_SMALL)], device) / _SMALL,
    )


def _least(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of some tries; on a CPU without those in which others had it."""
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < _TRIES and time.perf_counter() - begun < _ENOUGH:
        started, worked = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - started
        found.append(min(took, time.process_time() - worked) if device.type == "cpu" else took)
    return max(min(found), 1e-9)
