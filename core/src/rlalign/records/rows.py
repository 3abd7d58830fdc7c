"""Responses as logged data: made of a rollout, kept in a run's `rows/`, read back row by row."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import Reward
from rlalign.data.example import Example, LazyExamples
from rlalign.data.rollout import SAMPLED, TRANSCRIPT, Rollout, ends_of_turns
from rlalign.data.spoken import Spoken, as_logged, messages_of
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Policy

OURS = "rlalign"
"""The key of a row's `meta` under which everything stands that is not the example's own."""


class Rows(LazyExamples):
    """The scored responses in a log. Only where each row begins stays in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts = array("q")
        if path.exists():
            with path.open("rb") as file:
                at = 0
                for line in file:
                    self.starts.append(at)
                    at += len(line)

    def __len__(self) -> int:
        return len(self.starts)

    def example(self, index: int) -> Example:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            return _example(json.loads(file.readline()))


def _example(row: dict[str, Any]) -> Example:
    return Example(
        id=row["id"],
        prompt=row["prompt"],
        responses=tuple(row["responses"]),
        scores=tuple(float(s) for s in row.get("scores", ())),
        finished=tuple(row["finished"]),
        meta=row["meta"],
    )


# -- writing them -----------------------------------------------------------------------------------------


def rows_of(
    rollout: Rollout, reward: Reward, policy: Policy, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row a group: what the task `dataset` reads back as it stands. `about` goes into every row's `meta`.

    Texts are those that were sampled, so that whoever learns from them meets the same tokens; `same_tokens` says
    of which responses that is true. Log-probs are None where the policy did not sample.
    """
    logprobs = {
        name: _total(rollout, getattr(rollout, f"{name}_NT")) for name in ("logprobs", "full_logprobs")
    }
    rewards = {name: _total(rollout, x) if x.ndim == 2 else x.tolist() for name, x in reward.parts.items()}
    totals, texts = reward.total_N.tolist(), _sampled(rollout, policy)
    same = _encode_back(rollout, policy, texts)
    rows = []
    for g, example in enumerate(rollout.examples):
        mine = (rollout.group_N == g).nonzero()[:, 0].tolist()
        sampled = next((i for i in mine if logprobs["logprobs"][i] is not None), mine[0])
        how = rollout.settings[int(rollout.setting_N[sampled])]
        ours = {
            **{name: [value[i] for i in mine] for name, value in logprobs.items()},
            "same_tokens": [same[i] for i in mine],
            "rewards": {name: [value[i] for i in mine] for name, value in rewards.items()},
            **about,
            "generation": how.model_dump(mode="json"),
        }
        if "source" in rollout.columns:
            ours["source"] = [rollout.columns["source"][i] for i in mine]
        row = {
            "id": example.id,
            "prompt": example.prompt,
            "responses": [as_logged(texts[i]) for i in mine],
            "scores": [totals[i] for i in mine],
            "finished": [bool(rollout.finished_N[i]) for i in mine],
            "meta": {**example.meta, OURS: ours},
        }
        if not rewards:
            del row["scores"]
        rows.append(row)
    return rows


def _total(rollout: Rollout, x_NT: Tensor) -> list[float | None]:
    """The sum over each response's chosen steps; None where it is unknown."""
    total_N = x_NT.double().where(rollout.mask_NT, 0.0).sum(1)
    return [
        None if unknown else x for x, unknown in zip(total_N.tolist(), total_N.isnan().tolist(), strict=True)
    ]


def _sampled(rollout: Rollout, policy: Policy) -> Sequence[str]:
    """The texts that were sampled; of an episode with what was said in between."""
    if TRANSCRIPT not in rollout.columns:
        return tuple(rollout.columns[SAMPLED])
    return tuple(
        Spoken(messages_of(transcript, ended))
        for transcript, ended in zip(
            rollout.columns[TRANSCRIPT], ends_of_turns(rollout, policy.ends), strict=True
        )
    )


def _encode_back(rollout: Rollout, policy: Policy, texts: Sequence[str]) -> list[bool]:
    """Of each response, whether the policy reads its text as the very tokens that were chosen."""
    alone = [
        replace(rollout.examples[g], responses=(text,), scores=(), finished=(ended,))
        for g, text, ended in zip(rollout.group_N.tolist(), texts, rollout.finished_N.tolist(), strict=True)
    ]
    try:
        again = policy.encode(alone)
    except RLAlignError:  # one has become longer than the policy reads, or it cannot be read at all
        if len(alone) == 1:
            return [False]
        rows = torch.arange(len(alone), device=rollout.group_N.device)
        return [
            same
            for row in rows.split(1)
            for same in _encode_back(rollout.take(row), policy, [texts[int(row)]])
        ]
    return [_steps(rollout, i) == _steps(again, i) for i in range(len(alone))]


def _steps(rollout: Rollout, i: int) -> tuple[list[int], list[bool]]:
    length = int(rollout.length_N[i])
    return rollout.actions_NT[i, :length].tolist(), rollout.mask_NT[i, :length].tolist()
