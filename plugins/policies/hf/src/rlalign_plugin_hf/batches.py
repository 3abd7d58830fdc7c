"""Ragged rows side by side. Legend: N responses, G groups, T steps, L longest row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlalign import Rollout


def right_padded(rows: Sequence[Tensor], filler: int) -> tuple[Tensor, Tensor]:
    """(ids_nL, real_nL)."""
    length_n = torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids_nL = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=filler)
    return ids_nL, torch.arange(ids_nL.shape[1], device=ids_nL.device) < length_n[:, None]


def left_padded(rows: Sequence[Tensor], filler: int) -> tuple[Tensor, Tensor]:
    """(ids_nL, real_nL), every row ending in the last column."""
    ids_nL, real_nL = right_padded([row.flip(0) for row in rows], filler)
    return ids_nL.flip(1), real_nL.flip(1)


def distinct(rows: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Each different row once, and which of them every given row is."""
    places: dict[tuple[int, ...], int] = {}
    kept: list[Tensor] = []
    which = []
    for row in rows:
        key = tuple(row.tolist())
        if key not in places:
            places[key] = len(kept)
            kept.append(row)
        which.append(places[key])
    return kept, torch.tensor(which, device=rows[0].device)


def with_actions(start_NL: Tensor, start_N: Tensor, rollout: Rollout, filler: int, steps_N: Tensor) -> Tensor:
    """Rows that begin with `start_N` tokens of `start_NL` and go on with the first `steps_N` actions."""
    taken_NT = torch.arange(rollout.steps, device=start_N.device) < steps_N[:, None]
    row_M, step_M = taken_NT.nonzero(as_tuple=True)
    width = max(int((start_N + steps_N).max()), 1)
    ids_NL = start_NL.new_full((len(start_N), width), filler)
    shared = min(width, start_NL.shape[1])
    ids_NL[:, :shared] = start_NL[:, :shared]
    ids_NL[row_M, start_N[row_M] + step_M] = rollout.actions_NT[row_M, step_M]
    return ids_NL


def feature_places(rollout: Rollout, start_N: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """(row, column) of the state before each chosen step; with `last`, of those after the responses too."""
    row_M, step_M = rollout.chosen
    column_M = start_N[row_M] + step_M - 1
    if not last:
        return row_M, column_M
    rows_N = torch.arange(len(rollout), device=row_M.device)
    return torch.cat([row_M, rows_N]), torch.cat([column_M, start_N + rollout.length_N - 1])


WORTH = 0.9
"""The largest share of the tokens of whole rows for which two passes are better than one."""


def worth_prompts_once(rollout: Rollout) -> bool:
    """Whether computing each prompt once leaves few enough tokens to pay for a second pass."""
    prompts = max(map(Tensor.numel, rollout.inputs)) * len(rollout.inputs)
    whole, response = torch.stack([rollout.cost_N.max(), rollout.length_N.max()]).tolist()
    return bool(prompts + len(rollout) * response <= WORTH * len(rollout) * whole)


def accepted(module: Any, **inputs: Any) -> dict[str, Any]:
    """Those of the inputs that the module's `forward` names and that are given."""
    names = _names(module.__class__)
    return {name: value for name, value in inputs.items() if name in names and value is not None}


@cache
def _names(cls: Any) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)
