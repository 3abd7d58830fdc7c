"""All of `rlalign check`: what is told of a pipeline once nothing is wrong with it, in words and as data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlalign.config.pipeline import Pipeline
from rlalign.config.registry import Registry
from rlalign.costs.machines import parse
from rlalign.data.example import Example
from rlalign.data.limits import in_words
from rlalign.errors import ConfigError
from rlalign.interface.environment import Environment
from rlalign.interface.policy import Policy
from rlalign.learning.memory import free_on
from rlalign.running.arithmetic import Arithmetic, arithmetic
from rlalign.running.asking import told
from rlalign.running.costs_told import HERE, Found, PhaseWork, costs
from rlalign.running.data_told import Look, look
from rlalign.running.display import NoDisplay
from rlalign.running.plan import PhasePlan
from rlalign.running.preflight import LOOKED_AT, preflight, splits
from rlalign.running.report import describe
from rlalign.running.workspace import TOKENS, Workspace

LOOP = "the sampling loop"
_log = logging.getLogger("rlalign")


class _Told(NoDisplay):
    """Notes, for those who read the log."""

    def note(self, text: str) -> None:
        _log.info("%s", text)


@dataclass(frozen=True)
class Checked:
    """What there is to say of a pipeline that can run."""

    text: str
    facts: Mapping[str, Any]
    """The same as plain data, for `--json`."""


def check(pipeline: Pipeline, registry: Registry, machine: str | None = None) -> str:
    """The pipeline in words."""
    return checked(pipeline, registry, machine).text


def checked(pipeline: Pipeline, registry: Registry, machine: str | None = None) -> Checked:
    """The pipeline, once nothing is wrong with it that can be known without weights and in little time.

    Where another `machine` is named, what is not in order on this one is told of, and does no harm.
    """
    elsewhere = machine is not None and machine not in HERE
    if elsewhere:
        parse(str(machine))
    space = Workspace(pipeline, registry, _Told())
    try:
        found = preflight(space, LOOKED_AT, elsewhere=elsewhere)
    except ConfigError as error:
        if not elsewhere:
            raise
        missing = f"on this machine it cannot run: {error}"
        parts = [describe(pipeline, space.plans)]
        return _checked(space, {}, machine, parts, opened=False, missing=missing)
    policy = space.pipeline.policy.peek()
    assert isinstance(policy, Policy)
    examples = [_examples(plan, found) for plan in space.plans]
    parts = [describe(pipeline, space.plans, examples, _tokens(space))]
    return _checked(space, found, machine, parts, opened=policy.here)


def _checked(
    space: Workspace,
    found: Found,
    machine: str | None,
    parts: list[str],
    *,
    opened: bool,
    missing: str = "",
) -> Checked:
    """What was looked at, after the parts that are told of it already."""
    taken = costs(space, found, machine, opened=opened)
    batches = {phase.plan.settings.name: _batch(space, phase) for phase in taken.phases}
    looks = _looks(space, found) if opened else {}
    parts.append(_in_words(batches))
    parts += ["".join(f"\ndata of {_indented(one.lines())}\n" for one in looks.values())]
    if missing:
        parts += [taken.text, f"\n{missing}\n"]
    else:
        asked = told(space.models, space.plans)
        parts += [_sampling(space), *([taken.text, asked] if machine is None else [asked, taken.text])]
    facts = {
        "pipeline": space.pipeline.stem,
        "seed": space.pipeline.seed,
        "repeat": space.pipeline.repeat,
        "runs_here": not missing,
        "missing": missing or None,
        "machine": taken.machine(),
        "phases": {
            phase.plan.settings.name: {
                "batch": batches[phase.plan.settings.name].facts(),
                "costs": taken.facts(phase),
            }
            for phase in taken.phases
        },
        "data": [one.facts() for one in looks.values()],
    }
    return Checked("".join(parts), facts)


def _batch(space: Workspace, phase: PhaseWork) -> Arithmetic:
    data = None if phase.data is None or len(phase.data) >= LOOKED_AT else len(phase.data)
    budget = (phase.plan.settings.train.budget or space.budget) if phase.of.read else None
    once = phase.model is not None and phase.model.shape.once
    return arithmetic(phase.plan, phase.work, data=data, budget=budget, once=once)


def _looks(space: Workspace, found: Found) -> dict[int, Look]:
    """At the training rows of each task once."""
    looks: dict[int, Look] = {}
    for plan in space.plans:
        examples = found.get((id(plan.task), "train"))
        if examples and plan.reads_train and id(plan.task) not in looks:
            more = len(examples) >= LOOKED_AT
            looks[id(plan.task)] = look(space.models.opened(), plan, examples, more=more)
    return looks


def _indented(lines: Iterable[str]) -> str:
    return "\n  ".join(lines)


def _in_words(batches: Mapping[str, Arithmetic]) -> str:
    several, told = len(batches) > 1, ["\nbatch:"]
    for name, batch in batches.items():
        told += [f"  {name}:"] if several else []
        indent = "    " if several else "  "
        told += [f"{indent}{line}" for line in batch.lines()]
        told += [f"{indent}! {line}" for line in batch.advice()]
    return "\n".join(told) + "\n"


def _sampling(space: Workspace) -> str:
    """What will sample, where the policy lies on this machine and can say so."""
    policy = space.pipeline.policy.peek()
    elsewhere = all(plan.sampler is not None for plan in space.plans)
    if not isinstance(policy, Policy) or not policy.here or elsewhere:
        return ""
    how = space.models.opened().sampling(space.device)
    if how is None:
        return ""
    plays = any(isinstance(plan.task, Environment) for plan in space.plans)
    also = "; episodes of several turns by the sampling loop" if plays and not how.startswith(LOOP) else ""
    return f"\nsampling: {how}{also}\n"


def _tokens(space: Workspace) -> str:
    """How large micro-batches may be, and why, where that follows from the memory."""
    policy = space.pipeline.policy.peek()
    assert isinstance(policy, Policy)
    most = space.budget
    size = space.footprint() if policy.here else None
    if size is None:
        return f"{most:,} padded tokens" if policy.here else "as many tokens as the memory allows"
    found = f"{space.fit({}, loaded=False)[TOKENS]:,} padded tokens"
    if space.budget == most:
        return found
    free = in_words(free_on(space.device) or 0)
    return f"{found}: about {in_words(size.token)} each while it learns, and {free} of memory are free now"


def _examples(plan: PhasePlan, found: dict[tuple[int, str], Sequence[Example]]) -> str:
    """How many examples there are, for the report; and how often each is drawn, where that is more than once."""
    said = []
    for split in splits(plan):
        if (id(plan.task), split) not in found:
            continue
        size, prompts = len(found[id(plan.task), split]), plan.settings.train.prompts
        if size >= LOOKED_AT:
            said.append(f"{split} {LOOKED_AT:,} or more")
            continue
        said.append(f"{split} {size:,}")
        if split == "train" and plan.settings.origin is None and prompts > size:
            said[-1] += (
                f" (fewer than `prompts: {prompts}`: an iteration draws each about {prompts / size:.3g} times)"
            )
    return ", ".join(said)
