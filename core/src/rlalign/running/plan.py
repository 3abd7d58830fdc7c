"""The plan of a phase: its components, each in its place, and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlalign.config.pipeline import Phase
from rlalign.data.settings import Role, Unit
from rlalign.interface.component import Component, Task
from rlalign.running.members import HOOKS, Member, once
from rlalign.running.stages import Stages


@dataclass(frozen=True)
class PhasePlan:
    """What a phase is made of."""

    settings: Phase
    task: Task
    members: tuple[Member, ...]
    evaluators: tuple[Member, ...]
    training: Stages
    evaluation: Stages
    models: Mapping[str, Role]
    lagging: Mapping[str, int]
    """After how many iterations each copy of the policy that the core renews takes its weights."""
    trains: tuple[str, ...]
    live: frozenset[str]
    columns: tuple[tuple[str, str], ...]
    reward_columns: tuple[tuple[str, str], ...]
    """Those that rewards read."""
    evaluation_columns: tuple[tuple[str, str], ...]
    unit: Unit
    learns: bool

    @property
    def source(self) -> Member:
        """Where responses come from."""
        return next(m for m in self.members if m.role == "responses")

    @property
    def everybody(self) -> list[Member]:
        """Every component of the phase in its place, once, in pipeline order."""
        return once((*self.members, *self.evaluators))

    @property
    def components(self) -> list[Component]:
        """Those components."""
        return [m.component for m in self.everybody]

    @property
    def observers(self) -> list[Member]:
        """Those that only watch."""
        return [m for m in self.members if m.role == "observers"]

    def acting(self) -> dict[str, list[str]]:
        """Who acts in each stage, for `rlalign check`."""
        found = {
            hook: names
            for hook in HOOKS
            if hook != "evaluate"
            and (names := [m.name for m in self.training.implementing(hook) if m.role != "observers"])
        }
        if self.settings.evaluate:
            found["evaluate"] = [
                m.name for hook in ("reward", "evaluate") for m in self.evaluation.implementing(hook)
            ]
        return found
