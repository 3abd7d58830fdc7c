"""What iterations take, beside what was estimated before they began: seconds of each stage, memory at its highest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from rlalign.costs.machines import Device, Machine
from rlalign.data.limits import in_words
from rlalign.errors import RLAlignError
from rlalign.records.result import COSTS
from rlalign.records.rundir import write_atomic
from rlalign.running import figures
from rlalign.running.costing import in_shards, whole
from rlalign.running.costs_told import phase_work
from rlalign.running.phase import RunningPhase
from rlalign.running.this_machine import this_device
from rlalign.world.ranks import here

STAGES = ("rollout", "score", "update")
"""Stages of an iteration that are estimated; rewards are not."""


class Memory:
    """Bytes beyond those that a process had before its models, at the highest since the last `reset`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._before = self._now()

    def _now(self, name: str = "VmRSS") -> float | None:
        if self._cuda is not None:
            return float(torch.cuda.memory_allocated(self._cuda))
        with suppress(OSError):
            found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
            return 1024.0 * int(found[1]) if found else None
        return None

    def reset(self) -> bool:
        """Whether the highest can be told from now on."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    @property
    def most(self) -> float | None:
        """None where it cannot be told."""
        if self._cuda is not None:
            return float(torch.cuda.max_memory_allocated(self._cuda)) - (self._before or 0.0)
        most = self._now("VmHWM")
        return None if most is None or self._before is None else most - self._before


@lru_cache(maxsize=4)
def _rates(device: torch.device) -> Device:
    return this_device(device)


class Costs:
    """Of a phase: estimated before its iterations, and measured while they go on."""

    def __init__(self, phase: RunningPhase, memory: Memory) -> None:
        self._phase, self._memory = phase, memory
        self.estimated = _estimate(phase) if here().count == 1 else None
        self._resets = self.estimated is not None and memory.reset()
        self._count = 0
        self._first: dict[str, float] = {}
        self._later = dict.fromkeys(STAGES, 0.0)
        """The sum of all iterations but the first, which warms up."""

    def iteration(self) -> None:
        """One is over: its clock has what each stage took."""
        if self.estimated is not None:
            clock = self._phase.clock
            own = clock.worked if self._phase.workspace.device.type == "cpu" else clock.seconds
            took = {stage: own.get(stage, 0.0) for stage in STAGES}
            self._count += 1
            if self._count == 1:
                self._first = took
            else:
                self._later = {stage: self._later[stage] + took[stage] for stage in STAGES}

    @property
    def measured(self) -> dict[str, float] | None:
        """The mean of all iterations but the first, if there are more."""
        if self._count == 0:
            return None
        later = self._count - 1
        found = {stage: self._later[stage] / later for stage in STAGES} if later else dict(self._first)
        found["iteration"] = sum(found.values())
        most = self._memory.most if self._resets else None
        return found if most is None else {**found, "memory": most}

    def written(self, folder: Path) -> str | None:
        """Into the run's folder, and in words; None where nothing was estimated."""
        estimated, measured = self.estimated, self.measured
        if estimated is None or measured is None:
            return None
        path, phase = folder / COSTS, self._phase
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        unit = "processor seconds" if phase.workspace.device.type == "cpu" else "seconds"
        found = {"iterations": self._count, "unit": unit, "estimated": estimated, "measured": measured}
        write_atomic(path, json.dumps({**known, phase.settings.name: found}, indent=1) + "\n")
        return _in_words(estimated, measured, unit)


def _estimate(phase: RunningPhase) -> dict[str, float] | None:
    """Seconds and bytes of an iteration on this machine; None where the policy does not say its shape."""
    policy = phase.models.policy
    try:
        work = phase_work(phase.plan, policy, policy.shape(), phase.draw.data, opened=True)
    except RLAlignError:
        return None
    if work.model is None:
        return None
    on = Machine(_rates(phase.workspace.device))
    layout = in_shards(work.model, on, offload=True) if phase.models.cut else whole(work.model, on)
    took = {stage: float(getattr(layout.seconds, stage)) for stage in STAGES}
    if layout.sampling is not None:  # only what is waited for counts; a processor's seconds are its own work
        learning = took["score"] + took["update"] if layout.seconds.ahead else 0.0
        took["rollout"] = 0.0 if on.device.cpu else max(0.0, took["rollout"] - learning)
    return {**took, "iteration": sum(took.values()), "memory": layout.bytes.most}


def _in_words(estimated: Mapping[str, float], measured: Mapping[str, float], unit: str) -> str:
    of = " of the processor" if unit == "processor seconds" else ""
    took, guess = (figures.duration(found["iteration"]) for found in (measured, estimated))
    said = f"an iteration took {took}{of}, {guess} estimated"
    if "memory" in measured:
        most, guess = (in_words(found["memory"]) for found in (measured, estimated))
        said += f"; memory {most}, {guess} estimated"
    return said
