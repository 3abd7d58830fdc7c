"""One iteration: draw, rollout, reward, advantage, update."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Reward, concat_batches, concat_rewards
from rlalign.data.rollout import Rollout, concat
from rlalign.errors import attributed_to
from rlalign.records.rows import OURS, rows_of
from rlalign.running import dealing, figures
from rlalign.running.bad_rewards import without_bad_rewards
from rlalign.running.metrics import new_ones, of_remembered, of_responses, of_sampler, tied
from rlalign.running.phase import Clock, RunningPhase
from rlalign.running.responses import respond
from rlalign.running.shown import learned
from rlalign.running.updating import update
from rlalign.serving.served import unservable

TIED = 3
"""Iterations without a difference after which it is told."""
WAITING = 0.1
"""The share of an iteration, beside a GPU, at which it is told that a reward could be computed meanwhile."""


def run_iteration(phase: RunningPhase) -> dict[str, float]:
    """Run one iteration; return its metrics."""
    phase.clock = Clock(phase.workspace.display.stage)
    started = time.perf_counter()
    train, stages = phase.settings.train, phase.plan.training
    phase.models.iteration_started()
    phase.untouched.iteration_started()
    drawn = phase.draw.position
    seen, batches = _batches(phase)
    left_out = phase.draw.position - drawn - train.prompts * len(batches)
    batch = _joined(phase, batches)
    new = new_ones(seen)
    metrics = of_responses(new) | of_remembered(seen) | of_sampler(new, phase.models.policy.version)
    if (share := tied(seen)) is not None:
        metrics["groups/tied"] = share
        _note_ties(phase, share)
    metrics["groups"] = float(len(batch.rollout.examples))
    if train.refill:
        metrics["refills"] = len(batches) - 1.0
        if (found := int(_new_groups(batch).sum())) < train.prompts:
            phase.workspace.display.note(
                f"iteration {phase.iteration + 1}: {found} of {train.prompts} groups after {train.refill} refills"
            )
    if phase.draw.refuse is not None:
        metrics["left_out"] = float(left_out)
    _keep_rows(phase, new)
    with phase.clock("update"):
        if phase.plan.learns:
            phase.sampled_at = phase.step if any(_has_sampled(rollout) for rollout, _ in seen) else None
            metrics |= update(phase, with_old_logprobs(phase, batch))
    phase.iteration += 1
    phase.share = 0.0
    phase.models.renew(phase.plan.lagging, phase.iteration)
    stages.iteration_done(phase.run, *_all_of(seen), metrics)
    phase.models.iteration_done()
    _keep_learned(phase, batch)
    metrics["time/iteration"] = time.perf_counter() - started
    rewards = stages.reward_seconds()
    if phase.iteration > 1:  # the first warms up
        _note_waiting(phase, rewards, metrics["time/iteration"])
    took = {**phase.clock.seconds, **{f"reward/{name}": seconds for name, seconds in rewards.items()}}
    return metrics | {f"time/{part}": seconds for part, seconds in took.items()}


def _note_ties(phase: RunningPhase, share: float) -> None:
    """Say once that there is nothing to compare, where the algorithm compares the responses of a group."""
    phase.tied = phase.tied + 1 if share == 1 else 0
    if phase.tied == TIED and any(m.component.min_samples > 1 for m in phase.plan.members):
        phase.workspace.note_once(
            f"{phase.settings.name}:",
            "tied",
            f"in {TIED} iterations running all responses of each group earned the same reward, so there is nothing to "
            "compare and to learn from; look at the responses (`rlalign sample`) and at what the reward says of them",
        )


def _note_waiting(phase: RunningPhase, rewards: Mapping[str, float], whole: float) -> None:
    """Say once which reward a GPU waits for, that a process of its own could compute while others are sampled."""
    if phase.workspace.device.type == "cpu":  # it would take its time from the sampling
        return
    for member in phase.plan.training.implementing("reward"):
        share, inline = rewards.get(member.name, 0.0) / whole, not hasattr(member.component, "ahead")
        if share > WAITING and inline and unservable(member.component) is None:
            phase.workspace.note_once(
                f"`{member.name}`",
                "waiting",
                f"took {figures.percent(share)} of an iteration, while nothing else went on; if a response's score "
                "depends on its group alone, `isolate: true` beside it has a process of its own begin while others are "
                "sampled",
            )


def _batches(phase: RunningPhase) -> tuple[list[tuple[Rollout, Reward]], list[Batch]]:
    """Scored responses and what `advantage` made of them. With `refill`, draw again while there are too few groups."""
    train, first = phase.settings.train, phase.draw.position
    seen: list[tuple[Rollout, Reward]] = []
    batches: list[Batch] = []
    for _ in range(train.refill + 1):
        with attributed_to(f"task `{phase.settings.task.name}`, asked for examples,"):
            examples = phase.draw.next(train.prompts)
        phase.position = phase.draw.position - len(examples) - first
        rollout, reward = without_bad_rewards(
            phase, phase.plan.training, respond(phase, examples), phase.plan.columns
        )
        seen.append((rollout, reward))
        with phase.clock("advantage"):
            batches.append(phase.plan.training.advantage(phase.run, rollout, reward))
            dealing.same_batch(batches[-1], phase.plan.training.implementing("advantage"))
        if sum(int(_new_groups(b).sum()) for b in batches) >= train.prompts:
            break
    return seen, batches


def _joined(phase: RunningPhase, batches: Sequence[Batch]) -> Batch:
    """The rounds of a refilled iteration, cut to the wanted number of groups; remembered ones stand beside these."""
    train = phase.settings.train
    batch = concat_batches([b for b in batches if len(b)] or list(batches[:1]))
    new_G = _new_groups(batch)
    if train.refill and int(new_G.sum()) > train.prompts:
        kept_G = ~new_G | (new_G.cumsum(0) <= train.prompts)
        batch = batch.take(kept_G[batch.rollout.group_N])
    return batch.as_step()


def _new_groups(batch: Batch) -> Tensor:
    """[G]: whether a response of each group was made for this iteration."""
    rollout = batch.rollout
    new_G = torch.zeros(len(rollout.examples), dtype=torch.bool, device=rollout.group_N.device)
    new_G[rollout.group_N[rollout.new_N]] = True
    return new_G


def _all_of(seen: Sequence[tuple[Rollout, Reward]]) -> tuple[Rollout, Reward]:
    """The responses of all rounds, and what they earned."""
    some = [(rollout, reward) for rollout, reward in seen if len(rollout)] or seen[:1]
    if len(some) == 1:
        return some[0]
    return concat([rollout for rollout, _ in some]), concat_rewards([reward for _, reward in some])


def with_old_logprobs(phase: RunningPhase, batch: Batch) -> Batch:
    """The batch with the log-probs that ratios are taken to, if a loss needs them."""
    if "old_logprobs" not in phase.plan.live or len(batch) == 0:
        return batch
    old_NT = phase.outputs.policy_logprobs(batch.rollout)
    return replace(batch, old=torch.where(batch.rollout.mask_NT, old_NT, old_NT.new_zeros(())))


def _has_sampled(rollout: Rollout) -> bool:
    """Whether the sampler left log-probs of some response."""
    return bool((rollout.mask_NT & ~rollout.full_logprobs_NT.isnan()).any())


def _keep_learned(phase: RunningPhase, batch: Batch) -> None:
    """Write down some of what was learned from, where an evaluation follows."""
    if phase.evaluates and phase.plan.learns:
        for row in learned(phase, batch):
            phase.workspace.logs.append("learned.jsonl", {**phase.where, **row})


def _keep_rows(phase: RunningPhase, seen: Sequence[tuple[Rollout, Reward]]) -> None:
    """Write down the iteration's responses and scores, for a later phase or for another run."""
    if not phase.keeps:
        return
    iteration = phase.iteration + 1  # as metrics.jsonl counts
    about = {
        **phase.where,
        "iteration": iteration,
        "step": phase.step,
        "task": phase.settings.task.component,
    }
    made = (row for rollout, reward in seen for row in rows_of(rollout, reward, phase.models.policy, about))
    for g, row in enumerate(made):
        row["meta"][OURS]["example"] = row["id"]
        row["id"] = f"{row['id']}#{iteration}.{g}"
        phase.workspace.logs.append(phase.workspace.data.rows_file(phase.repeat, phase.settings.name), row)
