"""From examples to scored responses: sampled or logged, read as the task reads them, with columns and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from rlalign.data.batch import Reward
from rlalign.data.example import Example
from rlalign.data.limits import require_memory
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.errors import attributed_to
from rlalign.records.rows import SAMPLED
from rlalign.running.phase import RunningPhase
from rlalign.running.stages import Stages

BYTES = 16
"""That one step of one response takes at least: its uniform while it is made, then its token and log-prob."""


def respond(phase: RunningPhase, examples: Sequence[Example]) -> tuple[Rollout, Reward]:
    """The responses of the pipeline's source, and what they earn in training."""
    with phase.clock("rollout"):
        rollout = phase.plan.training.rollout(phase.run, examples)
    if phase.keeps:
        rollout = rollout.with_columns(**{SAMPLED: rollout.texts})
    return rewarded(phase, phase.plan.training, rollout, phase.plan.columns)


def rewarded(
    phase: RunningPhase, stages: Stages, rollout: Rollout, columns: Sequence[tuple[str, str]]
) -> tuple[Rollout, Reward]:
    """Responses as the task reads them, with the columns somebody needs, and their rewards."""
    task = phase.plan.task
    with attributed_to(f"`postprocess` of task `{task.name}`"):
        rollout = replace(rollout, texts=tuple(task.postprocess(text) for text in rollout.texts))
    with phase.clock("score"):
        rollout = phase.outputs.with_columns(rollout, columns)
    with phase.clock("reward"):
        return rollout, stages.reward(phase.run, rollout)


def sample(
    phase: RunningPhase,
    examples: Sequence[Example],
    how: Sampling,
    key: tuple[str | int, ...],
    first: int,
    *,
    constrained: bool = True,
) -> Rollout:
    """The policy's responses; position p of the draw always meets the same uniforms."""
    policy = phase.models.policy
    steps = min(how.max_new_tokens, policy.horizon or how.max_new_tokens)
    require_memory(
        f"sampling {len(examples):,} × {how.samples:,} responses of up to {steps:,} tokens",
        *(len(examples), how.samples, steps, BYTES),
        remedy="lower the number of prompts, samples or max_new_tokens",
    )
    uniforms = phase.workspace.seeds.uniforms(
        *key, positions=range(first, first + len(examples)), samples=how.samples, steps=steps
    ).to(phase.models.device)
    constraints = [c.constraint for c in phase.plan.components if c.constraint is not None]
    within = constraints[0] if constraints and constrained else None
    with torch.no_grad(), phase.engine.autocast():
        return policy.sample(examples, how, uniforms, within)
