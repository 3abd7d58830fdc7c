"""The last part of `rlalign check`: what the pipeline takes of this machine, or of one that is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlalign.costs.machines import Machine, parse
from rlalign.data.example import Example
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Policy
from rlalign.running.cost_report import in_full, lines, machine_in_words, shortly
from rlalign.running.costing import Lengths, Model, copied, lengths, own_trunks, work_of
from rlalign.running.this_machine import this_device
from rlalign.running.workspace import Workspace

HERE = ("here", "cpu")
"""Names of this machine: what the run would use of it, or its processor."""

Found = Mapping[tuple[int, str], Sequence[Example]]


def machine_of(said: str | None, space: Workspace) -> Machine:
    """The machine that is meant."""
    if said is None or said in HERE:
        import torch

        return Machine(this_device(torch.device("cpu") if said == "cpu" else space.device))
    return parse(said)


def costs(space: Workspace, found: Found, said: str | None, *, opened: bool) -> str:
    """Of every phase. `said`: the machine as the command line names it; without one, few lines of this machine.

    `opened`: whether the policy can read prompts here.
    """
    policy = space.models.opened() if opened else space.pipeline.policy.peek()
    assert isinstance(policy, Policy)
    try:
        shape = policy.shape() if policy.here else None
    except RLAlignError as error:
        return f"\nmachine: what it takes cannot be said: {error}\n" if said else ""
    if shape is None:
        if said is None:
            return ""
        why = (
            "does not say its shape"
            if policy.here
            else "is not on this machine, and its configuration with it"
        )
        return f"\nmachine: policy `{space.pipeline.policy.name}` {why}, so nothing can be said of memory and time\n"
    on = machine_of(said, space)
    told = [f"\nmachine: {machine_in_words(on)}"]
    for plan in space.plans:
        data = found.get((id(plan.task), "train")) if plan.settings.origin is None else None
        logged = "sampled" not in plan.responses
        of = lengths(policy, data, logged) if opened else Lengths()
        work = work_of(plan, of, policy.horizon)
        train = plan.settings.train
        model = Model(
            shape,
            work,
            copies=copied([plan], work, shares=policy.shares or shape.learned < shape.weights),
            shares=policy.shares,
            budget=train.budget,
            constrained=any(component.constraint is not None for component in plan.components),
            trunks=own_trunks(plan),
        )
        if said is None:
            told.append(f"  {plan.settings.name}: {shortly(plan, model, on)}")
        else:
            rows = len(data) if data is not None else None
            told.append(f"\n{plan.settings.name}:\n" + lines(list(in_full(plan, model, on, of, rows))))
    return "\n".join(told) + "\n"
