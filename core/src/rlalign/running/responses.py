"""From examples to scored responses: sampled or logged, read as the task reads them, with columns and rewards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rlalign.data.batch import Reward
from rlalign.data.example import Example
from rlalign.data.limits import require_memory
from rlalign.data.rollout import SAMPLED, Rollout
from rlalign.data.settings import Sampling
from rlalign.errors import attributed_to
from rlalign.interface.environment import Environment
from rlalign.running import dealing
from rlalign.running.ahead import Question
from rlalign.running.elsewhere import ask_ahead, asked_elsewhere, scored_again, upcoming
from rlalign.running.phase import RunningPhase
from rlalign.running.playing import Playing
from rlalign.running.recorded import Recorded
from rlalign.running.rewriting import counted_from, named, play_by_turns
from rlalign.running.stages import Stages
from rlalign.world.sharding import whole

BYTES = 16
"""That one step of one response takes at least: its uniform while it is made, then its token and log-prob."""


def respond(phase: RunningPhase, examples: Sequence[Example]) -> Rollout:
    """The responses of the pipeline's source."""
    stages = phase.plan.training
    # What another source makes of the policy's samples, their groups may not be whole, or not all there.
    phase.finished = told(phase, stages) if phase.plan.samples_only else None
    phase.upcoming = upcoming(phase)
    with phase.clock("rollout"):
        rollout = stages.rollout(phase.run, examples)
    phase.finished = phase.upcoming = None
    return rollout.with_columns(**{SAMPLED: rollout.texts})


def rewarded(
    phase: RunningPhase, stages: Stages, rollout: Rollout, columns: Sequence[tuple[str, str]]
) -> tuple[Rollout, Reward]:
    """Responses as the task reads them, and their rewards, whatever these are."""
    rollout = read(phase, rollout, columns)
    with phase.clock("reward"):
        return rollout, stages.reward(phase.run, rollout)


def read(phase: RunningPhase, rollout: Rollout, columns: Sequence[tuple[str, str]]) -> Rollout:
    """Responses as the task reads them, with the columns somebody needs."""
    rollout = _as_read(phase, rollout)
    with phase.clock("score"):
        return phase.outputs.with_columns(rollout, columns)


def told(phase: RunningPhase, stages: Stages) -> Callable[[Rollout], None] | None:
    """What hands whole groups, as the task reads them, to the rewards that can begin before all are sampled."""
    if not stages.early:
        return None
    return lambda part: stages.ahead(phase.run, _as_read(phase, part))


def _as_read(phase: RunningPhase, rollout: Rollout) -> Rollout:
    task = phase.plan.task
    with attributed_to(f"`postprocess` of task `{task.name}`"):
        return replace(rollout, texts=tuple(task.postprocess(text) for text in rollout.texts))


def sample(
    phase: RunningPhase,
    examples: Sequence[Example],
    how: Sampling,
    key: tuple[str | int, ...],
    first: int,
    *,
    constrained: bool = True,
    finished: Callable[[Rollout], None] | None = None,
) -> Rollout:
    """The policy's responses, or its sampler's; position p of the draw always meets the same uniforms or seeds.

    `finished` is told of whole groups as they end, by a policy that can tell.
    """
    policy, task = phase.models.policy, phase.plan.task
    most = min(how.max_new_tokens, policy.horizon or how.max_new_tokens)
    rewrites = isinstance(task, Environment) and task.rewrites
    steps = task.tokens if isinstance(task, Environment) and not rewrites else most
    require_memory(
        f"sampling {len(examples):,} × {how.samples:,} responses of up to {steps:,} tokens",
        *(len(examples), how.samples, steps, BYTES),
        remedy="lower the number of prompts, samples or max_new_tokens",
    )
    if phase.sampler is not None:
        given = asked_elsewhere(phase, phase.sampler, Question(tuple(examples), how, key, first))
        ask_ahead(phase, phase.sampler)
        return scored_again(phase, phase.sampler, given)
    constraints = [c.constraint for c in phase.plan.components if c.constraint is not None]
    within = constraints[0] if constraints and constrained else None
    early = {}
    if finished is not None and "finished" in inspect.signature(policy.sample).parameters:
        early["finished"] = finished

    def some(places: range) -> Rollout:
        positions = range(first + places.start, first + places.stop)
        seeds, part = phase.workspace.seeds, [examples[i] for i in places]

        def uniforms(*of: str | int, steps: int) -> Tensor:
            found = seeds.uniforms(*key, *of, positions=positions, samples=how.samples, steps=steps)
            return found.to(phase.models.device)

        with torch.no_grad(), phase.engine.autocast():
            if not isinstance(task, Environment):
                return policy.sample(part, how, uniforms(steps=steps), within, **early)
            played = task if task.replays else Recorded(task, phase.workspace.answers, phase.tick)
            game = Playing(played, part, how.samples, partial(seeds.rng, *key), positions.start)
            if not rewrites:
                return policy.play(part, how, uniforms(steps=steps), game, within, finished)
            rows = play_by_turns(policy, how, game, partial(uniforms, "turn"), within)
            return counted_from(rows, places.start, how.samples)

    asks = within is not None or (isinstance(task, Environment) and task.models)
    with whole(phase.models.values() if asks else [policy]):
        found = dealing.sampled(examples, phase.models.device, some)
    return named(counted_from(found, first, how.samples), how.samples) if rewrites else found
