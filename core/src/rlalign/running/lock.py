"""The lock of a run: everything its numbers depend on, to be compared when it is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from rlalign.config import places
from rlalign.config.pipeline import without_observers
from rlalign.records.columns import data_fingerprint
from rlalign.records.environment import make_lock, seal
from rlalign.records.logs import plain
from rlalign.records.weights import fingerprint
from rlalign.running.workspace import Workspace
from rlalign.world.ranks import here


def lock_of(
    space: Workspace, text: str, budgets: Mapping[str, Any], sealed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """What `lock.json` says; `text` is what pipeline.yaml does, `sealed` what another lock says of the environment,
    to compare with."""
    items = [space.pipeline.policy]
    for plan in space.plans:
        items += [m.item for m in (*plan.members, *plan.evaluators) if m.role != "observers"]
        items += [spec.item for spec in plan.settings.models.values() if spec.item]
    pipeline = without_observers(places.read(text, "pipeline.yaml").data)
    found = [
        (item.cls.__module__, space.registry.load(item.component, space.pipeline.folder).installed)
        for item in items
    ]
    data = {
        f"{plan.settings.task.name}/train": space.data.fingerprint(plan, space.data.split(plan, "train"))
        for plan in space.plans
        if plan.settings.origin is None or plan.settings.origin.original
    }
    for plan in space.plans:
        if asked := plan.settings.evaluate:
            first = space.data.first(plan, asked.split, asked.examples)
            data[f"{plan.settings.task.name}/{asked.split}[:{asked.examples}]"] = plan.task.fingerprint(
                asked.split
            ) or data_fingerprint(first)
    for item in items:  # what options found out for themselves, such as the hash of a user's file
        for name in type(item.options).model_computed_fields:
            data[f"{item.name}.{name}"] = str(getattr(item.options, name))
    return make_lock(
        pipeline=json.loads(json.dumps(plain(pipeline))),
        seed=space.pipeline.seed,
        deterministic=space.pipeline.deterministic,
        distributions={installed.distribution for _, installed in found if installed},
        modules={module for module, installed in found if not installed},
        given={i.component: i.cls for i in items if i.component in space.registry.extra},
        data=data,
        models={"policy": space.models.begun or fingerprint(space.models.policy)},
        samplers={sampler.name: sampler.repeats for sampler in space.samplers},
        device=space.device.type,
        dtype=str(space.models.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        budgets=budgets,
        environment={
            name: seal(os.environ.get(name), sealed.get(name)) for name in space.pipeline.environment
        },
        world={"processes": here().count, "backend": here().backend} if here().count > 1 else {},
    )
