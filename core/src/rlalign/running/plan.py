"""The plan of a phase: its components, each in its place, and what they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlalign.config.pipeline import Phase
from rlalign.data.settings import Role, Sampling, Unit
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
    evaluates_reward: bool
    """Whether evaluation scores by all that training does, so that the weighted sum is the phase's reward."""
    not_evaluated: tuple[str, ...]
    """What evaluation leaves out, as it would estimate something from responses that are no samples."""
    unit: Unit
    learns: bool

    @property
    def told_of_evaluation(self) -> str:
        """What evaluation leaves out and why, if it does."""
        names = " and ".join(f"`{name}`" for name in self.not_evaluated)
        return names and (
            f"{names} left out: an estimate that holds for samples, and these responses are none; "
            "with `evaluate.generation` as `generation` they are"
        )

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


def decoding(phase: Phase, task: Task, changes: Mapping[str, Any] = {}) -> Sampling:
    """Evaluation's decoding: as asked, else the task's, else greedy and once, as long as in training."""
    asked = phase.evaluate.generation.model_dump(exclude_unset=True) if phase.evaluate else {}
    chosen = {**task.generation, **asked, **changes} or {"greedy": True}
    base = {"max_new_tokens": phase.generation.max_new_tokens, "stop": phase.generation.stop}
    return Sampling.model_validate_json(json.dumps({**base, **chosen}))
