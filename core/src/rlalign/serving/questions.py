"""What a served reward is asked and what it answers, as JSON: groups of responses, and a score for each.

A group is the unit: a response's score may depend on its group and on no other, so what is known of a group need not
be asked again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from rlalign.data.batch import Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.errors import ComponentError

Group = dict[str, Any]
"""An example and the responses to it."""
_TAG = "~"
"""The key of what JSON has no value for."""


# -- questions -----------------------------------------------------------------------------------------------


def groups_of(rollout: Rollout) -> list[tuple[list[int], Group]]:
    """The groups that have responses: their rows, and what is asked of them."""
    rows_GK, real_GK = rollout.groups()
    lengths, actions_NT = rollout.length_N.tolist(), rollout.actions_NT.tolist()
    masks_NT, finished = rollout.mask_NT.tolist(), rollout.finished_N.tolist()
    exact = not rollout.actions_NT.is_floating_point()
    found = []
    for example, rows_K, real_K in zip(rollout.examples, rows_GK, real_GK, strict=True):
        rows = rows_K[real_K].tolist()
        if rows:
            responses = [
                {
                    "text": rollout.texts[i],
                    "actions": taken if exact else _plain(taken),
                    "mask": "".join("01"[chosen] for chosen in masks_NT[i][: lengths[i]]),
                    "finished": finished[i],
                }
                for i in rows
                for taken in [actions_NT[i][: lengths[i]]]
            ]
            dtype = str(rollout.actions_NT.dtype).removeprefix("torch.")
            found.append(
                (rows, {"example": example_written(example), "responses": responses, "dtype": dtype})
            )
    return found


def key_of(group: Group, *about: str) -> str:
    """A hash of what is asked, of whom and when."""
    return hashlib.sha256(json.dumps([*about, group], sort_keys=True).encode()).hexdigest()


def example_written(example: Example, otherwise: str = "leave out `isolate`") -> dict[str, Any]:
    """`otherwise`: what is to be done where it holds what cannot be sent."""
    names = ("id", "prompt", "responses", "scores", "finished", "meta", "row")
    try:
        return {name: _plain(getattr(example, name)) for name in names}
    except _Unsendable as error:
        raise ComponentError(
            f"example `{example.id}` holds a {error}, which cannot be sent to another process: only text, numbers, "
            f"true, false, null, lists and mappings travel; {otherwise}"
        ) from None


class _Unsendable(Exception):
    """A value of a kind that does not travel."""


def _plain(value: Any) -> Any:
    """A value as JSON that tells a tuple from a list, and every float."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_TAG: "float", "of": str(value)}
    if isinstance(value, tuple):
        return {_TAG: "tuple", "of": [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        if all(type(key) is str and key != _TAG for key in value):
            return {key: _plain(each) for key, each in value.items()}
        pairs = [[_plain(key), _plain(each)] for key, each in value.items()]
        return {_TAG: "dict", "of": pairs}
    if isinstance(value, Sequence):  # messages of a chat
        return [_plain(each) for each in value]
    raise _Unsendable(type(value).__name__)


# -- read again ------------------------------------------------------------------------------------------------


class _Response(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    text: str
    actions: list[Any]
    mask: str
    finished: bool


class _Group(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    example: dict[str, Any]
    responses: list[_Response]
    dtype: Literal["int64", "int32", "int16", "uint8", "bool", "float32", "float64"]


_GROUPS = TypeAdapter(list[_Group])


def rollout_of(asked: Any) -> Rollout:
    """The responses that were asked for. Log-probs are NaN, and prompts as a policy reads them empty."""
    groups = _GROUPS.validate_python(asked)
    responses = [(g, response) for g, group in enumerate(groups) for response in group.responses]
    dtype = getattr(torch, groups[0].dtype) if groups else torch.long
    shape = len(responses), max((len(r.mask) for _, r in responses), default=0)
    actions: list[Any] = []
    for _, r in responses:
        actions += _meant(r.actions) if dtype.is_floating_point else r.actions
        actions += [0] * (shape[1] - len(r.mask))
    masks = "".join(r.mask.ljust(shape[1], "0") for _, r in responses).encode("ascii")
    actions_NT = torch.tensor(actions, dtype=dtype).reshape(shape)
    mask_NT = torch.tensor(list(masks), dtype=torch.uint8).reshape(shape) == ord("1")
    return Rollout(
        examples=tuple(example_of(group.example) for group in groups),
        inputs=tuple(torch.zeros(0, dtype=torch.long) for _ in groups),
        group_N=torch.tensor([g for g, _ in responses], dtype=torch.long),
        actions_NT=actions_NT,
        mask_NT=mask_NT,
        finished_N=torch.tensor([r.finished for _, r in responses], dtype=torch.bool),
        settings=(Sampling(),),
        setting_N=torch.zeros(len(responses), dtype=torch.long),
        logprobs_NT=torch.full(shape, torch.nan),
        full_logprobs_NT=torch.full(shape, torch.nan),
        texts=tuple(r.text for _, r in responses),
    )


def example_of(said: Mapping[str, Any]) -> Example:
    """An example that was `written`."""
    return Example(**_meant(said))


def _meant(said: Any) -> Any:
    """What `_plain` wrote."""
    if isinstance(said, list):
        return [_meant(each) for each in said]
    if not isinstance(said, dict):
        return said
    kind, of = said.get(_TAG), said.get("of")
    if kind == "tuple":
        return tuple(_meant(of))
    if kind == "float":
        return float(str(of))
    if kind == "dict":
        return {_meant(key): _meant(each) for key, each in of or ()}
    return {key: _meant(each) for key, each in said.items()}


# -- answers ---------------------------------------------------------------------------------------------------


def _number(said: Any) -> Any:
    return float(said) if said in ("nan", "inf", "-inf") else said


Number = Annotated[float, BeforeValidator(_number)]


class Column(BaseModel):
    """A number for each response of a group, or one for each of its steps."""

    model_config = ConfigDict(extra="forbid")
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    rows: list[Annotated[float, BeforeValidator(_number)]] | list[list[Number]]


class Answer(BaseModel):
    """What a reward says of a group."""

    model_config = ConfigDict(extra="forbid")
    value: Column
    metrics: dict[str, Column] = {}


_ANSWERS = TypeAdapter(list[Answer])


def answers_of(score: Any, rollout: Rollout) -> list[dict[str, Any]]:
    """A score, cut into what it says of each group of `rollout_of`. Raises ComponentError where it is none."""
    if not isinstance(score, Score):
        raise ComponentError(f"`reward` must return a Score, got {_kind(score)}")
    held = {"value": score.value, **{f"metric `{name}`": x for name, x in score.metrics.items()}}
    for name, x in held.items():
        _require_numbers(name, x, rollout)
    lengths = rollout.length_N.tolist()
    rows_GK, real_GK = rollout.groups()

    def column(x: Tensor, rows: list[int]) -> dict[str, Any]:
        x = x.detach().cpu()
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        said: list[Any] = [x[i].tolist() if x.ndim == 1 else x[i, : lengths[i]].tolist() for i in rows]
        return {"dtype": str(x.dtype).removeprefix("torch."), "rows": _finite(said)}

    answers = []
    for rows_K, real_K in zip(rows_GK, real_GK, strict=True):
        rows = rows_K[real_K].tolist()
        metrics = {name: column(x, rows) for name, x in score.metrics.items()}
        answers.append({"value": column(score.value, rows), "metrics": metrics})
    return answers


def _require_numbers(name: str, x: Any, rollout: Rollout) -> None:
    if not isinstance(x, Tensor):
        raise ComponentError(f"`reward` must give Score(tensor), got {_kind(x)} as its {name}")
    if x.is_complex() or x.is_quantized or x.layout != torch.strided or x.device.type == "meta":
        raise ComponentError(f"`reward` gave a {name} that is no tensor of numbers ({x.dtype}, {x.layout})")
    count, shape = len(rollout), tuple(rollout.mask_NT.shape)
    if tuple(x.shape) not in ((count,), shape):
        raise ComponentError(
            f"`reward` scored {tuple(x.shape)} where {count} responses of up to {rollout.steps} steps ask for "
            f"({count},) or {shape}"
        )


def _kind(value: Any) -> str:
    return "nothing; is a `return` missing?" if value is None else f"a {type(value).__name__}"


def _finite(said: list[Any]) -> list[Any]:
    return [_finite(x) if isinstance(x, list) else x if math.isfinite(x) else str(x) for x in said]


def checked(answers: Any, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The answers, if each is one to its group. Raises ValueError, in words that follow the reward's name."""
    try:
        found = _ANSWERS.validate_python(answers)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"answered what is no score ({place}: {first['msg']})") from None
    if len(found) != len(groups):
        raise ValueError(f"answered for {len(found)} groups where {len(groups)} were asked")
    for answer, group in zip(found, groups, strict=True):
        lengths = [len(response["mask"]) for response in group["responses"]]
        for column in (answer.value, *answer.metrics.values()):
            if len(column.rows) != len(lengths):
                raise ValueError(f"gave {len(column.rows)} numbers for {len(lengths)} responses of a group")
            counts = [
                len(row) if isinstance(row, list) else n for row, n in zip(column.rows, lengths, strict=True)
            ]
            if counts != lengths:
                raise ValueError("gave numbers for other steps than a response has")
    return list(answers)


def score_of(answers: Sequence[tuple[list[int], Mapping[str, Any]]], rollout: Rollout) -> Score:
    """One score of a rollout from what was said of its groups, each with its rows. Raises ValueError."""
    found = [(rows, Answer.model_validate(said)) for rows, said in answers]
    names = list(found[0][1].metrics) if found else []
    if any(list(answer.metrics) != names for _, answer in found):
        raise ValueError("gave other metrics for one group than for another")
    columns = {name: [(rows, answer.metrics[name]) for rows, answer in found] for name in names}
    value = _joined([(rows, answer.value) for rows, answer in found], rollout)
    return Score(value, metrics={name: _joined(column, rollout) for name, column in columns.items()})


def _joined(columns: Sequence[tuple[list[int], Column]], rollout: Rollout) -> Tensor:
    kinds = {(c.dtype, isinstance(c.rows[0], list)) for _, c in columns}
    if len(kinds) > 1:
        raise ValueError(
            "gave one group a number a response and another a number a step, or another precision"
        )
    name, by_step = kinds.pop() if kinds else ("float32", False)
    dtype: torch.dtype = getattr(torch, name)
    said: list[Any] = [0.0] * len(rollout)
    for rows, column in columns:
        for i, row in zip(rows, column.rows, strict=True):
            said[i] = [*row, *[0.0] * (rollout.steps - len(row))] if isinstance(row, list) else row
    shape = rollout.mask_NT.shape if by_step else (len(rollout),)
    return torch.tensor(said, dtype=dtype, device=rollout.mask_NT.device).reshape(shape)
