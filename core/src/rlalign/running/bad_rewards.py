"""A reward that is NaN or infinite ends the run, or its prompts are left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlalign.data.batch import Reward
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.records.rundir import RunDir, write_atomic
from rlalign.records.tensors import save_tensors
from rlalign.running.phase import RunningPhase

DROPPED_AT_MOST = 0.05
"""The share of an iteration's prompts that `on_bad_reward: drop` may leave out."""


def without_bad_rewards(phase: RunningPhase, rollout: Rollout, reward: Reward) -> tuple[Rollout, Reward]:
    """Stop at a NaN or infinite reward, or drop the groups it stands in."""
    bad_N = torch.zeros(len(rollout), dtype=torch.bool, device=rollout.group_N.device)
    guilty = []
    for name, part in reward.parts.items():
        finite = part.isfinite() if part.ndim == 1 else (part.isfinite() | ~rollout.mask_NT).all(1)
        if not bool(finite.all()):
            guilty.append(name)
            bad_N |= ~finite
    if not guilty:
        return rollout, reward
    groups = rollout.group_N[bad_N].unique().tolist()
    ids = [rollout.examples[g].id for g in groups]
    row = int(bad_N.nonzero()[0, 0])
    folder = phase.workspace.dir.path
    if phase.settings.train.on_bad_reward == "stop":
        kept = save_bad_batch(phase.workspace.dir, rollout, reward.parts)
        raise ComponentError(
            f"the reward `{guilty[0]}` is not finite for {int(bad_N.sum())} of {len(rollout)} responses, the first "
            f"to example `{ids[0]}`: {rollout.texts[row]!r}. The batch is in {kept}; "
            "`train.on_bad_reward: drop` would leave such prompts out"
        )
    share = len(groups) / len(rollout.examples)
    where = {**phase.where, "iteration": phase.iteration + 1}
    phase.workspace.logs.append("dropped.jsonl", {**where, "rewards": guilty, "examples": ids})
    if share > DROPPED_AT_MOST:
        raise ComponentError(
            f"the reward `{guilty[0]}` is not finite for {share:.0%} of the prompts of iteration "
            f"{phase.iteration + 1}, more than the {DROPPED_AT_MOST:.0%} that `on_bad_reward: drop` forgives; "
            f"their ids are in {folder / 'dropped.jsonl'}"
        )
    keep = ~torch.isin(rollout.group_N, torch.tensor(groups, device=rollout.group_N.device))
    rows = keep.nonzero()[:, 0]
    return rollout.take(rows), reward.take(rows)


def save_bad_batch(run: RunDir, rollout: Rollout, tensors: Mapping[str, Tensor]) -> Path:
    """Write down a batch that cannot be learned from, for whoever looks into it."""
    run.require_mine()
    folder = run.path / "bad-batch"
    folder.mkdir(exist_ok=True)
    held = {
        "actions": rollout.actions_NT,
        "mask": rollout.mask_NT,
        "logprobs": rollout.logprobs_NT,
        **tensors,
    }
    save_tensors(folder / "batch.safetensors", held)
    texts = [
        {"example": rollout.examples[g].id, "prompt": rollout.examples[g].prompt, "response": text}
        for g, text in zip(rollout.group_N.tolist(), rollout.texts, strict=True)
    ]
    write_atomic(folder / "texts.json", json.dumps(texts, indent=1, default=str))
    return folder
