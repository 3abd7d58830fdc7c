"""Evaluation: always the same examples and uniforms, and nothing that training could notice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isnan, sqrt
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import Reward
from rlalign.data.example import Example
from rlalign.data.rollout import START, Rollout
from rlalign.errors import RLAlignError
from rlalign.records import events
from rlalign.running import bad_rewards
from rlalign.running.metrics import of_responses
from rlalign.running.phase import Clock, RunningPhase
from rlalign.running.plan import decoding
from rlalign.running.responses import rewarded, sample, told
from rlalign.running.shown import in_words, sampled
from rlalign.world.ranks import here

IN_EVENTS = 8
"""Responses that TensorBoard gets each time."""


def evaluate(phase: RunningPhase) -> None:
    """Measure the policy on the first examples of a split; log the metrics, and some samples."""
    started = time.perf_counter()
    phase.clock = Clock(lambda part: phase.workspace.display.stage(f"evaluation: {part}"))
    phase.untouched.evaluation_started()
    rollout, reward = measured(phase)
    found = metrics_of(phase, rollout, reward)
    metrics = here().lead(lambda: found, "an evaluation's metrics")
    metrics["time/evaluate"] = time.perf_counter() - started
    asked = phase.settings.evaluate
    assert asked is not None
    logs, rows = phase.workspace.logs, sampled(phase, rollout, reward, asked.show)
    for row in rows:
        logs.append("samples.jsonl", {**phase.where, **row})
    logs.event(events.texts("samples", [in_words(row) for row in rows[:IN_EVENTS]], phase.tick))
    phase.log(metrics, evaluation=True)
    phase.workspace.spread = spread(by_example(phase, rollout, reward))
    phase.workspace.display.evaluated(metrics)
    phase.workspace.display.sample(rows[0])
    for stages in phase.plan.told:
        stages.evaluated(phase.run, metrics)


def examples(phase: RunningPhase) -> list[Example]:
    """The first examples of the split."""
    asked = phase.settings.evaluate
    assert asked is not None
    first = phase.workspace.data.first(phase.plan, asked.split, asked.examples)
    if not first:
        raise RLAlignError(f"the task has no examples in the split `{asked.split}` to evaluate on")
    return first


def responses(
    phase: RunningPhase,
    examples: Sequence[Example],
    generation: Mapping[str, Any] = {},
    *,
    to_score: bool = True,
) -> Rollout:
    """The policy's responses as evaluation samples them; `generation` stands above what the pipeline says.

    Unless they are not `to_score`, rewards that can begin early do so while others are still sampled.
    """
    how = decoding(phase.settings, phase.plan.task, generation)
    finished = told(phase, phase.plan.evaluation) if to_score else None
    with phase.clock("rollout"):
        return sample(phase, examples, how, ("evaluate",), 0, constrained=False, finished=finished)


def measured(phase: RunningPhase, *, logged: bool = False) -> tuple[Rollout, Reward]:
    """The responses that are measured, sampled now or the examples' own, and their rewards, of which none is bad."""
    stages, columns = phase.plan.evaluation, phase.plan.evaluation_columns
    found = given(phase) if logged else responses(phase, examples(phase))
    return bad_rewards.without_bad_rewards(phase, stages, found, columns, evaluation=True)


def given(phase: RunningPhase) -> Rollout:
    """The logged responses of the examples that have any, and the scores stored with them."""
    asked = phase.settings.evaluate
    assert asked is not None
    first = examples(phase)
    if not (found := [example for example in first if example.responses]):
        held = ", ".join(first[0].meta) or "nothing"
        raise RLAlignError(
            f"no example of the split `{asked.split}` has a logged response to measure; in the task `dataset`, "
            f"`responses: COLUMN` names the column with them (the first example has beside its prompt: {held})"
        )
    return phase.logged.rollout(found)


def scored(phase: RunningPhase, rollout: Rollout) -> tuple[Rollout, Reward]:
    """The responses as the task reads them, and their rewards, whatever these are."""
    return rewarded(phase, phase.plan.evaluation, rollout, phase.plan.evaluation_columns)


def metrics_of(phase: RunningPhase, rollout: Rollout, reward: Reward) -> dict[str, float]:
    """Counts, mean rewards, and whatever the `evaluate` hooks measure, under `eval/`.

    The total is the phase's own reward, or it is not there.
    """
    found = of_responses([(rollout, reward)])
    if not phase.plan.evaluates_reward:
        found.pop("reward/total", None)
    with bad_rewards.saved_if_bad(phase, rollout):
        measured = phase.plan.evaluation.evaluate(phase.run, rollout)
    return {
        **{f"eval/{short}": found[name] for name, short in _logged_as(found).items()},
        **{f"eval/{name}": value for name, value in measured.items()},
    }


def by_example(phase: RunningPhase, rollout: Rollout, reward: Reward) -> dict[str, list[float]]:
    """Those figures that are means over responses, by example, under the names that they are logged as."""
    values_N = {"length": rollout.length_N, "finished": rollout.finished_N}
    if phase.plan.evaluates_reward and reward.parts:
        values_N["reward/total"] = reward.total_N
    for name, part in reward.parts.items():
        values_N[f"reward/{name}"] = part.where(rollout.mask_NT, 0.0).sum(1) if part.ndim == 2 else part
    values_N |= {name: metric for name, metric in reward.metrics.items() if metric.ndim == 1}
    logged = _logged_as(["responses", "tokens", *values_N, *reward.metrics])
    group_N = rollout.group_N.cpu()  # on a GPU such sums differ from time to time
    if START in rollout.columns:  # some may be missing, whose episodes were left out
        group_N = rollout.columns[START].cpu().unique(return_inverse=True)[1]
    count = len(compared(rollout))

    def means(value_N: Tensor) -> list[float]:
        known_N = ~value_N.isnan()
        sum_G = group_N.bincount(value_N.where(known_N, 0.0), count)
        return (sum_G / group_N.bincount(known_N.double(), count)).tolist()

    return {f"eval/{logged[name]}": means(value_N.double().cpu()) for name, value_N in values_N.items()}


def spread(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Of each figure half a 95 % interval over examples, and how many they are; none of a single example."""
    found = {}
    for name, all_of in values.items():
        known = [value for value in all_of if not isnan(value)]
        if len(known) > 1 and all(map(isfinite, known)):
            found[name] = [1.96 * stdev(known) / sqrt(len(known)), float(len(known))]
    return found


def compared(rollout: Rollout) -> list[Example]:
    """The examples that figures are said of: what responses answer, or where episodes began whose rows are turns."""
    starts = rollout.columns.get(START, torch.arange(len(rollout.examples))).tolist()
    return [rollout.examples[starts.index(start)] for start in sorted(set(starts))]


def _logged_as(names: Iterable[str]) -> dict[str, str]:
    """What rewards and their metrics are called below `eval/`: a reward may be called `length` too."""
    known = set(names)
    shorts = {name: name.removeprefix("reward/") for name in names}
    return {name: name if short != name and short in known else short for name, short in shorts.items()}
