"""Whether weights are cut over the processes of a run, or whole on each: what `distributed` comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rlalign.config.pipeline import Pipeline
from rlalign.costs.machines import Device, Machine
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Policy
from rlalign.running.costing import Lengths, model_of, whole
from rlalign.running.plan import PhasePlan
from rlalign.running.planning import against_shards
from rlalign.running.this_machine import this_device
from rlalign.world.ranks import here


def cut_or_whole(
    pipeline: Pipeline,
    plans: Sequence[PhasePlan],
    device: torch.device,
    measured: Callable[[torch.device], Device] = this_device,
) -> tuple[bool, str]:
    """Whether they are cut, and where that was to be found out, why. The same on every rank."""
    world, said = here(), pipeline.distributed
    if world.count == 1 and not said.offload:
        return False, ""
    if said.shard != "auto":
        return said.shard, ""
    if against := next(iter(against_shards(pipeline)), ""):
        return False, f"weights stay whole on each process: {against}"
    short = world.gather(lambda: _short_of(pipeline, plans, measured(device)), "whether the weights fit")
    phases = [phase for phase in short if phase is not None]
    if not phases:
        return False, "distributed.shard: auto: weights are whole on each process: they fit"
    become = [f"are cut over {world.count} processes"] if world.count > 1 else []
    become += ["lie in the machine's memory between passes"] if said.offload else []
    why = f"weights {' and '.join(become)}: whole, `{phases[0]}` would not fit"
    return True, f"distributed.shard: auto: {why}"


def _short_of(pipeline: Pipeline, plans: Sequence[PhasePlan], device: Device) -> str | None:
    """The first phase that does not fit this process's device whole, if prompts are as long as where none is read."""
    policy, world = pipeline.policy.peek(), here()
    assert isinstance(policy, Policy)
    try:
        shape = policy.shape() if policy.here else None
    except RLAlignError:
        shape = None
    if shape is None:  # what it takes cannot be said before it is loaded
        return None
    if device.cpu:
        device = replace(device, memory=device.memory / world.beside)
    on = Machine(device, world.count)
    short = (p for p in plans if not whole(model_of(p, policy, shape, Lengths()), on).fits)
    return next((plan.settings.name for plan in short), None)
