"""Checks on what hooks returned; each error names the component and says what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Score
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.running.members import Member, who

T = TypeVar("T")


def expect(result: Any, kind: type[T], hook: str, member: Member | None) -> T:
    if not isinstance(result, kind):
        whose = who(member)
        got = "nothing" if result is None else f"a {type(result).__name__}"
        hint = "; is a `return` missing?" if result is None else ""
        raise ComponentError(f"`{hook}` of {whose} must return a {kind.__name__}, got {got}{hint}")
    return result


def checked_score(result: Any, member: Member, rollout: Rollout) -> Score:
    score = expect(result, Score, "reward", member)
    shapes = ((len(rollout),), tuple(rollout.mask_NT.shape))
    if not isinstance(score.value, Tensor):
        raise ComponentError(
            f"`reward` of {who(member)} must give Score(tensor), got {type(score.value).__name__}"
        )
    if tuple(score.value.shape) not in shapes:
        raise ComponentError(
            f"`reward` of {who(member)} scored {tuple(score.value.shape)} where {len(rollout)} responses of up to "
            f"{rollout.steps} steps ask for {shapes[0]} or {shapes[1]}"
        )
    for name, metric in score.metrics.items():
        if not isinstance(metric, Tensor) or tuple(metric.shape) not in shapes:
            found = tuple(metric.shape) if isinstance(metric, Tensor) else type(metric).__name__
            raise ComponentError(
                f"`reward` of {who(member)}: the metric `{name}` must be a tensor of {shapes[0]} or {shapes[1]}, "
                f"got {found}"
            )
    metrics = {name: _own(x, name, member, rollout) for name, x in score.metrics.items()}
    return replace(score, value=_own(score.value, "value", member, rollout), metrics=metrics)


def _own(x: Tensor, name: str, member: Member, rollout: Rollout) -> Tensor:
    """The core's own copy of numbers that a component may go on with; what lies where nothing was chosen is 0."""
    if x.is_complex() or x.is_quantized or x.layout != torch.strided or x.device.type == "meta":
        kind = "quantized" if x.is_quantized else f"{x.dtype}, {x.layout}, on {x.device}"
        raise ComponentError(f"`reward` of {who(member)}: `{name}` must be a tensor of numbers, got {kind}")
    mask_NT = rollout.mask_NT
    x = x.detach().to(mask_NT.device, copy=True)
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return torch.where(mask_NT, x, x.new_zeros(())) if x.ndim == 2 else x


def checked_scores(result: Any, names: Sequence[str | None], member: Member, rollout: Rollout) -> list[Score]:
    """What a wrapper made of the scores of these names."""
    if not isinstance(result, list) or not all(isinstance(s, Score) for s in result):
        raise ComponentError(f"`reward` of {who(member)} must return the list of scores it wraps")
    if (found := [s.name for s in result]) != list(names):
        raise ComponentError(f"`reward` of {who(member)} must return the scores {list(names)}, got {found}")
    return [checked_score(s, member, rollout) for s in result]


def checked_batch(result: Any, member: Member | None) -> Batch:
    """Row-aligned, and finite wherever the policy chose."""
    batch = expect(result, Batch, "advantage", member)
    whose = who(member)
    rows, shape = len(batch.rollout), batch.rollout.mask_NT.shape
    if not isinstance(batch.advantage_NT, Tensor) or batch.advantage_NT.shape != shape:
        got = getattr(batch.advantage_NT, "shape", type(batch.advantage_NT).__name__)
        raise ComponentError(
            f"`advantage` of {whose}: advantage_NT must be a tensor of {tuple(shape)}, got "
            f"{tuple(got) if isinstance(got, torch.Size) else got}; "
            "`Batch.of(rollout, reward, advantage)` makes a batch"
        )
    held = {"reward": batch.reward.tokens_NT, **batch.columns}
    for name, column in held.items():
        if len(column) != rows:
            raise ComponentError(
                f"`advantage` of {whose}: `{name}` has {len(column)} rows for {rows} responses"
            )
    bad_N = (batch.rollout.mask_NT & ~batch.advantage_NT.isfinite()).any(1)
    if bad_N.any():
        first = int(bad_N.nonzero()[0])
        example = batch.rollout.examples[int(batch.rollout.group_N[first])].id
        raise ComponentError(
            f"`advantage` of {whose} gave a NaN or infinite advantage to {int(bad_N.sum()):,} of {rows:,} responses, "
            f"the first to example `{example}`, of reward {float(batch.reward.total_N[first]):g}"
        )
    return batch


def numbers(result: Any, hook: str, member: Member) -> dict[str, float]:
    metrics: Mapping[str, Any] = expect(result, Mapping, hook, member)  # type: ignore[type-abstract]
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError):
        raise ComponentError(
            f"`{hook}` of {who(member)} must return numbers by name, got {dict(metrics)}"
        ) from None
