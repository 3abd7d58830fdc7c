"""Evaluation: always the same examples and uniforms, and nothing that training could notice."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlalign.errors import RLAlignError
from rlalign.figures import of_responses
from rlalign.pipeline import Sampling

if TYPE_CHECKING:
    from rlalign.phase import PhaseRun

SHOWN = 8
"""Responses written to samples.jsonl each time."""


def evaluate(phase: PhaseRun) -> None:
    """The first examples of a split: their rewards, whatever the `evaluate` hooks measure, some samples."""
    asked, session = phase.phase.evaluate, phase.session
    assert asked is not None
    started = time.perf_counter()
    data = session.split(phase.wiring, asked.split)
    examples = [data[i] for i in range(min(asked.examples, len(data)))]
    if not examples:
        raise RLAlignError(f"the task has no examples in the split `{asked.split}` to evaluate on")
    how = decoding(asked.generation, phase.wiring.task.generation, phase.generation)
    rollout = phase.sample(examples, how, ("evaluate",), 0, free=True)
    stages = phase.wiring.evaluation
    rollout, reward = phase.scored_rollout(stages, rollout, phase.wiring.evaluation_columns)
    figures = of_responses([(rollout, reward)])
    metrics = {f"eval/{name.removeprefix('reward/')}": value for name, value in figures.items()}
    metrics |= {f"eval/{name}": value for name, value in stages.evaluate(phase.run, rollout).items()}
    metrics["time/evaluate"] = time.perf_counter() - started
    for row in range(min(SHOWN, len(rollout))):
        example = rollout.examples[int(rollout.group_N[row])]
        scores = {name: float(part[row].sum()) for name, part in reward.parts.items()}
        sample = {**phase.where, "prompt": example.prompt, "response": rollout.texts[row], "scores": scores}
        session.logs.append("samples.jsonl", sample)
    phase.log(metrics, evaluation=True)
    session.display.evaluated(metrics)
    phase.wiring.stages.evaluated(phase.run, metrics)


def decoding(asked: Mapping[str, Any], task: Mapping[str, Any], training: Sampling) -> Sampling:
    """Evaluation's decoding: as asked, else the task's, else greedy and once, as long as in training."""
    chosen = {**task, **asked} or {"greedy": True}
    base = {"max_new_tokens": training.max_new_tokens, "stop": training.stop}
    return Sampling.model_validate_json(json.dumps({**base, **chosen}))
