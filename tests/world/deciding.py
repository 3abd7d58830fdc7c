"""What each of several processes makes of `distributed: {shard: auto}`: deciding.py FOLDER FITS.yaml UNCUT.yaml."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.costs.machines import Device
from rlalign.running.cutting import cut_or_whole
from rlalign.running.planning import plan_phases
from rlalign.world.joining import taking_part


def device(memory: float) -> Device:
    return Device("made up", memory, 1e12, 1e12, 1e12, 1e9)


with taking_part() as world:
    found = []
    for file, memory in ((sys.argv[2], 1e6), (sys.argv[2], 1e11), (sys.argv[3], 1e6)):
        known = Registry(trust=True)
        pipeline = load_pipeline(file, ["distributed.shard=auto"], registry=known)
        plans, _ = plan_phases(pipeline, known)
        found.append(cut_or_whole(pipeline, plans, torch.device("cpu"), lambda _, m=memory: device(m)))  # type: ignore[misc]
    Path(sys.argv[1], f"{world.rank}.json").write_text(json.dumps(found))
