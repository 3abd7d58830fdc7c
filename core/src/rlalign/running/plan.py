"""The plan of a phase: its components, each in its place, and what they need."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlalign.builtin.responses import Sampled
from rlalign.config.pipeline import Phase, short
from rlalign.data.settings import Mismatch, Role, Sampling, Unit
from rlalign.interface.component import Component, Task
from rlalign.interface.environment import Environment
from rlalign.interface.sampler import Sampler
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
    only_evaluating: Stages
    """Those of evaluation that training knows nothing of."""
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
    sampler: Sampler | None
    """Who samples in the policy's place."""

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
    def told(self) -> tuple[Stages, Stages]:
        """Who is told of events, each component once: those that train, then those that only evaluate."""
        return self.training, self.only_evaluating

    @property
    def responses(self) -> frozenset[str]:
        """Which responses it learns from: `sampled` ones, `logged` ones, or both."""
        names = self.source.component.sources or [short(self.source.item.component)]
        return frozenset("logged" if name == "logged" else "sampled" for name in names)

    @property
    def samples_only(self) -> bool:
        """Whether it learns from the policy's responses as they are sampled."""
        return type(self.source.component) is Sampled

    @property
    def asks_ahead(self) -> bool:
        """Whether the next iteration's responses are sampled while it learns."""
        return self.samples_only and self.sampler is not None and self.sampler.config.ahead > 0

    @property
    def reads_train(self) -> bool:
        """Whether it draws the task's own training examples, and not only what an earlier phase wrote down."""
        return self.settings.origin is None or self.settings.origin.original

    @property
    def components(self) -> list[Component]:
        """Those components."""
        return [m.component for m in self.everybody]

    @property
    def mismatch(self) -> Mismatch | None:
        """How tokens are weighed for who sampled them; None where losses see to that."""
        return None if any(c.weighs for c in self.components) else self.settings.train.mismatch

    @property
    def observers(self) -> list[Member]:
        """Those that only watch."""
        return [m for m in self.members if m.role == "observers"]

    def _implementing(self, hook: str) -> list[Member]:
        """Who takes part in a stage of training, or is told of an event."""
        stages = self.told if hook in ("phase_started", "evaluated", "run_ended") else (self.training,)
        return [member for part in stages for member in part.implementing(hook)]

    def acting(self) -> dict[str, list[str]]:
        """Who acts in each stage, for `rlalign check`."""
        found = {
            hook: names
            for hook in HOOKS
            if hook != "evaluate"
            and (names := [m.name for m in self._implementing(hook) if m.role != "observers"])
        }
        if self.settings.evaluate:
            measures = [*self.evaluation.implementing("reward"), *self.evaluation.implementing("evaluate")]
            found["evaluate"] = list(dict.fromkeys(m.name for m in measures))
        return found


def decoding(phase: Phase, task: Task, changes: Mapping[str, Any] = {}) -> Sampling:
    """Evaluation's decoding: as asked, else the task's, else greedy and once, as long as in training."""
    asked = phase.evaluate.generation.model_dump(exclude_unset=True) if phase.evaluate else {}
    chosen = {**task.generation, **asked, **changes} or {"greedy": True}
    base = {"max_new_tokens": phase.generation.max_new_tokens, "stop": phase.generation.stop}
    return Sampling.model_validate_json(json.dumps({**base, **chosen}))


class NewTokens(NamedTuple):
    """The most tokens of a response that somebody asks for, and where that is said."""

    tokens: int = 0
    said: str = ""


def new_tokens(plans: Sequence[PhasePlan], *, training: bool = True) -> NewTokens:
    """The most that any phase or evaluation asks for."""
    asked = [NewTokens()]
    for plan in plans:
        settings = plan.settings
        generation = f"{settings.place_of('generation.max_new_tokens')}: generation.max_new_tokens"
        if "max_new_tokens" not in settings.generation.model_fields_set:
            generation += " (the default)"
        if isinstance(plan.task, Environment) and not plan.task.rewrites:
            asked.append(
                NewTokens(plan.task.tokens, f"{settings.task.place}: tokens of `{settings.task.name}`")
            )
            continue
        if training and "sampled" in plan.responses:
            asked.append(NewTokens(settings.generation.max_new_tokens, generation))
        if settings.evaluate is not None or not training:
            tokens = decoding(settings, plan.task).max_new_tokens
            own = settings.evaluate and "max_new_tokens" in settings.evaluate.generation.model_fields_set
            place = settings.place_of("evaluate.generation")
            said = f"{place}: evaluate.generation.max_new_tokens" if own else generation
            asked.append(NewTokens(tokens, said))
    return max(asked, key=lambda one: one.tokens)


def copies_of(plans: Sequence[PhasePlan]) -> set[str]:
    """The models, beside the policy, that are as large as it is."""
    return {name for plan in plans for name, role in plan.models.items() if role != "value"}


def asked_of(plans: Sequence[PhasePlan], task: Task, split: str) -> tuple[Collection[str], int | None]:
    """Which responses to a split's examples there will be, and how many of the first examples; None: all of them."""
    responses: set[str] = set()
    first: int | None = 0
    for plan in plans:
        if plan.task is not task:
            continue
        if split == "train" and plan.reads_train:
            responses |= plan.responses
            first = None
        if plan.settings.evaluate is not None and plan.settings.evaluate.split == split:
            responses |= {
                "sampled",
                *(m.component.responses for m in plan.evaluators if m.component.responses),
            }
            first = None if first is None else max(first, plan.settings.evaluate.examples)
    return responses, first
