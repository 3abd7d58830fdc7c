"""What a pipeline takes of this machine, or of one that is named: the last part of `rlalign check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlalign.costs.machines import Machine, parse
from rlalign.costs.shape import Shape, Work
from rlalign.data.example import Example
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Policy
from rlalign.running.cost_report import in_full, lines, machine_in_words, shortly, ways_of
from rlalign.running.costing import Layout, Lengths, Model, lengths, masks, model_of, work_of
from rlalign.running.cutting import cut_or_whole
from rlalign.running.plan import PhasePlan
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


@dataclass(frozen=True)
class PhaseWork:
    """A phase as the cost model sees it."""

    plan: PhasePlan
    of: Lengths
    work: Work
    data: Sequence[Example] | None
    """The task's own training examples, where it draws those."""
    model: Model | None
    """What is asked of a machine; None where the policy does not say its shape."""


@dataclass(frozen=True)
class Costs:
    """Of every phase, on a machine; without one `why` may say what is missing."""

    phases: Sequence[PhaseWork]
    on: Machine | None = None
    full: bool = False
    """All that can be told, and not a line."""
    offload: bool = False
    """Whether weights lie in the machine's memory between passes."""
    why: str = ""

    @property
    def text(self) -> str:
        """In words."""
        if self.on is None:
            return self.why and f"\nmachine: {self.why}\n"
        told = [f"\nmachine: {machine_in_words(self.on)}"]
        for phase in self.phases:
            plan, model = phase.plan, phase.model
            assert model is not None
            if self.full:
                rows = len(phase.data) if phase.data is not None else None
                told.append(
                    f"\n{plan.settings.name}:\n" + lines(list(in_full(plan, model, self.on, phase.of, rows)))
                )
            else:
                told.append(f"  {plan.settings.name}: {shortly(plan, model, self.on, self.offload)}")
        return "\n".join(told) + "\n"

    def machine(self) -> dict[str, Any] | None:
        """The machine as data."""
        return None if self.on is None else {**asdict(self.on.device), "count": self.on.count}

    def facts(self, phase: PhaseWork) -> dict[str, Any] | None:
        """A phase's ways to be laid out as data: bytes a device, seconds of an iteration."""
        if self.on is None or phase.model is None:
            return None
        ways = ways_of(phase.model, self.on)
        size = masks(phase.plan, phase.model)
        return {name: {**_facts(way), "masks": size} for name, way in ways.items()}


def _facts(way: Layout) -> dict[str, Any]:
    return {
        "fits": way.fits,
        "bytes": {**asdict(way.bytes), "most": way.bytes.most},
        "seconds": {**asdict(way.seconds), "iteration": way.total},
        "tokens_per_micro_batch": way.tokens,
        "rows_at_once": way.rows,
    }


def costs(space: Workspace, found: Found, said: str | None, *, opened: bool) -> Costs:
    """Of every phase. `said`: the machine as the command line names it; without one, few lines of this machine.

    `opened`: whether the policy can read prompts here.
    """
    policy = space.models.opened() if opened else space.pipeline.policy.peek()
    assert isinstance(policy, Policy)
    why, shape = "", None
    try:
        shape = policy.shape() if policy.here else None
    except RLAlignError as error:
        why = f"what it takes cannot be said: {error}"
    phases = [phase_work(plan, policy, shape, _drawn(plan, found), opened=opened) for plan in space.plans]
    if shape is None:
        silent = (
            "does not say its shape"
            if policy.here
            else "is not on this machine, and its configuration with it"
        )
        name = space.pipeline.policy.name
        why = why or f"policy `{name}` {silent}, so nothing can be said of memory and time"
        return Costs(phases, why=why if said else "")
    on, asked = machine_of(said, space), space.pipeline.distributed
    cut = asked.offload and cut_or_whole(space.pipeline, space.plans, space.device, lambda _: on.device)[0]
    return Costs(phases, on, full=said is not None, offload=cut)


def _drawn(plan: PhasePlan, found: Found) -> Sequence[Example] | None:
    """The task's own examples, where a phase draws those."""
    return found.get((id(plan.task), "train")) if plan.settings.origin is None else None


def phase_work(
    plan: PhasePlan,
    policy: Policy,
    shape: Shape | None,
    data: Sequence[Example] | None,
    *,
    opened: bool,
) -> PhaseWork:
    """A phase's work on its data; `opened`: whether the policy can read it."""
    of = lengths(policy, data, "sampled" not in plan.responses) if opened else Lengths()
    work = work_of(plan, of, policy.horizon)
    if shape is None:
        return PhaseWork(plan, of, work, data, None)
    return PhaseWork(plan, of, work, data, model_of(plan, policy, shape, of))
