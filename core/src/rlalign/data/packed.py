"""Responses as bytes, and back again to the bit: what is kept of them outside the loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from safetensors import deserialize
from safetensors.torch import save
from torch import Tensor

from rlalign.data.allowed import Allowed
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.data.spoken import Spoken
from rlalign.data.turn import Turn

_TENSORS = (
    *("group_N", "actions_NT", "mask_NT", "finished_N", "setting_N"),
    *("logprobs_NT", "full_logprobs_NT"),
)
_OF_EXAMPLE = ("id", "prompt", "responses", "scores", "finished", "meta")
_DTYPES = {
    "BOOL": torch.bool,
    **{"U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
}


def pack(rollout: Rollout) -> bytes:
    """The bytes of a rollout. Columns are tensors or tuples; these and examples hold texts, lists and dicts."""
    tensors = {name: getattr(rollout, name) for name in _TENSORS}
    tensors |= {f"input.{g}": x for g, x in enumerate(rollout.inputs)}
    words: dict[str, Any] = {
        "examples": [{name: getattr(e, name) for name in _OF_EXAMPLE} for e in rollout.examples],
        "settings": [s.model_dump(mode="json") for s in rollout.settings],
        "texts": rollout.texts,
        "columns": {},
    }
    for name, column in rollout.columns.items():
        if isinstance(column, Tensor):
            tensors[f"column.{name}"] = column
        else:
            words["columns"][name] = column
    if rollout.allowed is not None:
        words["vocabulary"] = rollout.allowed.vocabulary
        tensors |= {f"allowed.{name}": x for name, x in rollout.allowed.tensors().items()}
    # Each on its own: prompts may be views of one tensor, which safetensors refuses.
    held = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    return save(held, metadata={"words": json.dumps(_said(words), allow_nan=True)})


def unpack(data: bytes) -> Rollout:
    """The rollout that `pack` took."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    words = _meant(json.loads(header["__metadata__"]["words"]))
    tensors = {name: _tensor(view) for name, view in deserialize(data)}  # type: ignore[no-untyped-call]
    allowed = _under("allowed.", tensors)
    count = len(tensors["group_N"])
    return Rollout(
        examples=tuple(Example(**one) for one in words["examples"]),
        inputs=tuple(tensors[f"input.{g}"] for g in range(len(words["examples"]))),
        settings=tuple(Sampling.model_validate_json(json.dumps(s)) for s in words["settings"]),
        texts=words["texts"],
        allowed=Allowed.of_tensors(words["vocabulary"], count, allowed) if "vocabulary" in words else None,
        columns=words["columns"] | _under("column.", tensors),
        **{name: tensors[name] for name in _TENSORS},
    )


def _said(value: Any) -> Any:
    """The same in JSON, which knows no tuples and no keys but texts."""
    if isinstance(value, Turn):
        return {"turn": _said({f.name: getattr(value, f.name) for f in fields(value)})}
    if isinstance(value, Spoken):
        return {"spoken": _said(value.messages)}
    if isinstance(value, dict):
        return {"dict": [[_said(key), _said(each)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_said(each) for each in value]}
    return [_said(each) for each in value] if isinstance(value, list) else value


def _meant(said: Any) -> Any:
    if isinstance(said, list):
        return [_meant(each) for each in said]
    if not isinstance(said, dict):
        return said
    ((kind, each),) = said.items()
    if kind == "turn":
        return Turn(**_meant(each))
    if kind == "spoken":
        return Spoken(_meant(each))
    return tuple(map(_meant, each)) if kind == "tuple" else {_meant(k): _meant(x) for k, x in each}


def _tensor(view: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[view["dtype"]], view["shape"]
    if not len(view["data"]):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(view["data"]), dtype=dtype).reshape(shape)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
