"""Evaluation: always the same examples and uniforms, and nothing that training could notice."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlalign.data.batch import Reward
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import RLAlignError
from rlalign.running.metrics import of_responses
from rlalign.running.phase import RunningPhase
from rlalign.running.responses import rewarded, sample

SHOWN = 8
"""Responses written to samples.jsonl each time."""


def evaluate(phase: RunningPhase) -> None:
    """Measure the policy on the first examples of a split; log the metrics, and some samples."""
    started = time.perf_counter()
    rollout, reward = scored(phase, responses(phase, examples(phase)))
    metrics = metrics_of(phase, rollout, reward)
    metrics["time/evaluate"] = time.perf_counter() - started
    for row in shown(rollout, reward, SHOWN):
        phase.workspace.logs.append("samples.jsonl", {**phase.where, **row})
    phase.log(metrics, evaluation=True)
    phase.workspace.display.evaluated(metrics)
    phase.plan.training.evaluated(phase.run, metrics)


def examples(phase: RunningPhase) -> list[Example]:
    """The first examples of the split."""
    asked = phase.settings.evaluate
    assert asked is not None
    data = phase.workspace.data.split(phase.plan, asked.split)
    first = [data[i] for i in range(min(asked.examples, len(data)))]
    if not first:
        raise RLAlignError(f"the task has no examples in the split `{asked.split}` to evaluate on")
    return first


def responses(
    phase: RunningPhase, examples: Sequence[Example], generation: Mapping[str, Any] = {}
) -> Rollout:
    """The policy's responses as evaluation samples them; `generation` stands above what the pipeline says."""
    return sample(phase, examples, phase.plan.decoding(generation), ("evaluate",), 0, constrained=False)


def scored(phase: RunningPhase, rollout: Rollout) -> tuple[Rollout, Reward]:
    """The responses as the task reads them, and their rewards."""
    return rewarded(phase, phase.plan.evaluation, rollout, phase.plan.evaluation_columns)


def metrics_of(phase: RunningPhase, rollout: Rollout, reward: Reward) -> dict[str, float]:
    """Counts, mean rewards, and whatever the `evaluate` hooks measure, under `eval/`."""
    found = of_responses([(rollout, reward)])
    measured = phase.plan.evaluation.evaluate(phase.run, rollout)
    return {
        **{f"eval/{name.removeprefix('reward/')}": value for name, value in found.items()},
        **{f"eval/{name}": value for name, value in measured.items()},
    }


def shown(rollout: Rollout, reward: Reward, count: int) -> list[dict[str, Any]]:
    """The first responses as samples.jsonl shows them."""
    return [
        {
            "prompt": rollout.examples[g].prompt,
            "response": rollout.texts[row],
            "scores": {name: float(part[row].sum()) for name, part in reward.parts.items()},
        }
        for row, g in enumerate(rollout.group_N[:count].tolist())
    ]
