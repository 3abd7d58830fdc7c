"""Before weights are loaded: are data and models there, and can the policy read the data? Tells every fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy

from rlalign.config.pipeline import COPY_TIMES, short
from rlalign.data.example import Example
from rlalign.errors import ConfigError, Faults, refusing
from rlalign.interface.environment import Environment
from rlalign.interface.policy import Policy
from rlalign.running.best import unmeasured
from rlalign.running.half import note_if_slow
from rlalign.running.plan import PhasePlan
from rlalign.running.playing import opening
from rlalign.running.workspace import Workspace

LOOKED_AT = 1_000
"""Examples of a split that `rlalign check` looks at."""
_NOT_HERE = "is not looked at: what it reads is not on this machine"


def preflight(
    space: Workspace, most: int | None = None, *, elsewhere: bool = False
) -> dict[tuple[int, str], Sequence[Example]]:
    """All that the run will read, by task and split; one error lists every fault.

    With `most`, no more examples than that are looked at, and nothing that does not lie on this machine. `elsewhere`:
    how fast this one is does not matter.
    """
    faults, policy = Faults(), space.pipeline.policy.peek()
    assert isinstance(policy, Policy)
    space.data.most = most
    readable = most is None or policy.here
    if readable:
        with faults.collecting(), refusing():
            space.models.opened()
        readable = not faults.found
    elif most is not None:
        space.note_once(f"policy `{space.pipeline.policy.name}`", "policy", _NOT_HERE)
    _others(space, faults, most)
    for sampler in space.samplers if readable else ():
        with faults.collecting(), refusing():
            sampler.open(space.models.opened())
    found: dict[tuple[int, str], Sequence[Example]] = {}
    told: set[tuple[int, str]] = set()
    for plan in space.plans:
        plan.task.most = most or space.data.few
        if most is not None and not plan.task.here:
            space.note_once(f"task `{plan.settings.task.name}`", "task", _NOT_HERE)
            continue
        for split in splits(plan):
            key = (id(plan.task), split)
            if key in found:
                continue
            try:
                with refusing():
                    read = space.data.split if readable else space.data.given
                    found[key] = read(plan, split)
            except ConfigError as error:
                cause = (id(plan.task), str(error.__cause__ or error))
                if cause not in told:  # the file that is missing holds all splits
                    faults.found.append(str(error))
                told.add(cause)
        if readable and isinstance(plan.task, Environment) and (key := (id(plan.task), "train")) in found:
            with faults.collecting(), refusing():
                _playable(space, plan, plan.task, found[key])
        train = found.get((id(plan.task), "train"))
        if train and plan.reads_train and "logged" in plan.responses:
            faults.found += _without_log(plan, train)
    faults.found += unmeasured(space.pipeline.checkpoints, space.plans)
    faults.stop()
    if not elsewhere:
        note_if_slow(space)
    return found


def splits(plan: PhasePlan) -> list[str]:
    evaluate = plan.settings.evaluate
    return sorted({*(["train"] if plan.reads_train else []), *([evaluate.split] if evaluate else [])})


def _playable(
    space: Workspace, plan: PhasePlan, environment: Environment, examples: Sequence[Example]
) -> None:
    """Begin an episode, and see whether the policy can be told what its environment says."""
    policy, task = space.models.opened(), plan.settings.task
    if environment.rewrites:  # nothing is said in the middle of a row
        opening(environment, examples)
        return
    if type(policy).given is Policy.given:
        raise ConfigError(
            f"{task.place}: `{task.name}` plays episodes of several turns, and a `{space.pipeline.policy.name}` policy "
            "plays none: it cannot be told anything in the middle of a response"
        )
    with space.models.naming(doing=f", reading what `{task.name}` says"):
        policy.check_turn(opening(environment, examples).say)


def _others(space: Workspace, faults: Faults, most: int | None) -> None:
    """Models beside the policy that are loaded from a folder of their own."""
    for phase in space.pipeline.phases:
        for name, spec in phase.models.items():
            other = spec.item.cls(spec.item.options) if spec.item else None
            if spec.item is None and spec.of not in (None, *COPY_TIMES):
                other = space.models.at(str(spec.of))
            if isinstance(other, Policy) and (most is None or other.here):
                place = f"{phase.place_of(f'models.{name}')}: models.{name}"
                with faults.collecting(), refusing(), space.models.naming(place):
                    other.open()


def _without_log(plan: PhasePlan, examples: Sequence[Example]) -> list[str]:
    """What a phase that learns from logged responses lacks of them."""
    first = examples[0]
    task, place, who = plan.settings.task.name, plan.source.item.place, "responses come from the log here"
    if place == plan.settings.place:  # nobody said so
        learners = [m for m in plan.members if m.component.responses == "logged"]
        place, who = next(
            ((m.item.place, f"`{m.name}` learns from logged responses") for m in learners), (place, who)
        )
    if not first.responses:
        meta = ", ".join(map(repr, first.meta))
        only = f" (only, in its meta, {meta})" if meta else ""
        return [
            f"{place}: {who}, and the first example of task `{task}` has none{only}; say `responses: sampled`, or let "
            "the task give logged responses"
        ]
    rewards = [item for item in plan.settings.rewards if short(item.component) == "logged"]
    if rewards and not first.scores:
        return [
            f"{rewards[0].place}: the stored scores are the reward here, and the first example of task `{task}` has "
            "none; name `rewards` that score its responses, or take a task with scores"
        ]
    if plan.responses == {"logged"}:
        return list(_too_few(plan, examples))
    return []


def _too_few(plan: PhasePlan, examples: Sequence[Example]) -> Iterator[str]:
    """Who compares more responses than any prompt has."""
    counts = getattr(examples, "response_counts", None)
    if counts is None:
        counts = [len(examples[i].responses) for i in range(min(len(examples), LOOKED_AT))]
    most, looked_at = (
        int(numpy.max(counts)),
        "" if len(counts) == len(examples) else f"the first {LOOKED_AT:,} of ",
    )
    for member in plan.members:
        if most < member.component.min_samples:
            yield (
                f"{member.item.place}: `{member.name}` compares at least {member.component.min_samples} responses to a "
                f"prompt, and no example in {looked_at}`train` of task `{plan.settings.task.name}` has more than {most}"
            )
