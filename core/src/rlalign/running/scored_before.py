"""Scores that responses bring along from when they were scored before, so that nobody is asked for them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rlalign.data.batch import Score
from rlalign.data.rollout import SCORE_OF, Rollout, padded
from rlalign.running.members import Member


def given(score: Score, member: Member) -> dict[str, Tensor]:
    """A score and its metrics by name, if they depend on the responses alone and not on what models say now."""
    if member.component.needs:
        return {}
    return {
        member.name: score.value,
        **{f"{member.name}/{metric}": x for metric, x in score.metrics.items()},
    }


def unscored(rollout: Rollout, member: Member) -> Tensor | None:
    """The rows of those groups in which a response has no score of this reward; None: nothing is known of any."""
    known = rollout.columns.get(SCORE_OF + member.name)
    if known is None or member.component.needs:
        return None
    missing_N = _unknown(known)
    groups = rollout.group_N[missing_N].unique()
    return torch.isin(rollout.group_N, groups).nonzero()[:, 0]


def merged(rollout: Rollout, member: Member, rows: Tensor, new: Score | None) -> Score:
    """The score of all responses: `new` for those rows, what was known for the others."""
    known = {
        name: torch.where(rollout.mask_NT, padded(x, rollout.steps), 0.0) if x.ndim == 2 else x
        for name, x in _columns(rollout, member).items()
    }
    score = Score(known.pop(""), member.name, known)
    if new is None:
        return score
    joint = {name: x for name, x in new.metrics.items() if name in known}
    return replace(
        score,
        value=_put(score.value, rows, new.value),
        metrics={name: _put(known[name], rows, x) for name, x in joint.items()},
    )


def _columns(rollout: Rollout, member: Member) -> dict[str, Tensor]:
    """By metric, the score itself under the empty name."""
    name = SCORE_OF + member.name
    columns: Mapping[str, Tensor] = rollout.columns
    found = {key[len(name) + 1 :]: x for key, x in columns.items() if key.startswith(f"{name}/")}
    return {"": columns[name], **found}


def _unknown(x: Tensor) -> Tensor:
    return x.isnan() if x.ndim == 1 else x.isnan().flatten(1).any(1)


def _put(known: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """Both of one shape: a score of one number a response, or of one a step."""
    return known.index_copy(0, rows, new.to(known))
