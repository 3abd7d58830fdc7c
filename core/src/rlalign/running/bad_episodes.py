"""Groups of which an episode could not be played to its end are left out, as `on_bad_episode: drop` asks for."""

from __future__ import annotations

import torch

from rlalign.data.rollout import START, TRANSCRIPT, Rollout
from rlalign.errors import ComponentError
from rlalign.running.phase import RunningPhase

DROPPED_AT_MOST = 0.05
"""The share of an iteration's prompts that may be left out, for bad rewards or for bad episodes."""


def without_bad_episodes(phase: RunningPhase, rollout: Rollout, *, evaluation: bool) -> Rollout:
    """The groups whose episodes all were played; those left out are told of, and end the run where they are many.

    Where each turn is a row, a group is all turns of all episodes from one start.
    """
    group_N = rollout.columns.get(START, rollout.group_N)
    why: dict[int, str] = {}
    ids: dict[str, str] = {}
    transcripts = rollout.columns.get(TRANSCRIPT, ())
    for g, example, said in zip(group_N.tolist(), rollout.answered, transcripts, strict=False):
        failed = next((turn.failed for _, turn in said if turn.failed), "")
        if failed and g not in why:
            why[g] = ids[example.id] = failed
    if not why:
        return rollout
    name, count = phase.plan.task.name, len(group_N.unique())
    where = f"iteration {phase.iteration + 1}" if not evaluation else "an evaluation"
    about = {**phase.where, "iteration": phase.iteration + 1, "environment": name, "examples": list(ids)}
    if evaluation:
        about |= {"iteration": phase.iteration, "evaluation": True}
    phase.workspace.logs.append("dropped.jsonl", {**about, "why": ids})
    first = next(iter(ids.values()))
    if len(why) > DROPPED_AT_MOST * count:
        raise ComponentError(
            f"environment `{name}`: {len(why)} of the {count} groups of {where} hold a bad episode, more than the "
            f"{DROPPED_AT_MOST:.0%} that `on_bad_episode: drop` forgives; the first: {first}"
        )
    told = f"{len(why)} of the {count} groups of {where} hold a bad episode, and are left out: {first}"
    phase.workspace.note_once(f"environment `{name}`:", "dropped", told)
    keep = ~torch.isin(group_N, torch.tensor(list(why), device=group_N.device))
    return rollout.take(keep.nonzero()[:, 0])
