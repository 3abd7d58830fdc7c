"""Responses as bytes, and back again to the bit: what is kept of them outside the loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from rlalign import nested
from rlalign.data.allowed import Allowed
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.data.spoken import Spoken
from rlalign.data.turn import Turn

_AS_IT_IS = (
    *("inputs", "group_N", "actions_NT", "mask_NT", "finished_N", "setting_N"),
    *("logprobs_NT", "full_logprobs_NT", "texts", "columns"),
)
_NOBODY = Example("", "")
_OF_EXAMPLE = ("id", "prompt", "responses", "scores", "finished", "meta")
_KINDS: dict[str, Callable[[Any], Any]] = {"turn": lambda said: Turn(**said), "spoken": Spoken}


def pack(rollout: Rollout) -> bytes:
    """The bytes of a rollout."""
    allowed = rollout.allowed
    return nested.to_bytes(
        {name: getattr(rollout, name) for name in _AS_IT_IS}
        | {
            "examples": [{name: getattr(e, name) for name in _OF_EXAMPLE} for e in rollout.examples],
            "settings": [s.model_dump(mode="json") for s in rollout.settings],
            "allowed": None if allowed is None else (allowed.vocabulary, allowed.tensors()),
        },
        _own,
    )


def bare(rollout: Rollout) -> Rollout:
    """Without its examples, which whoever reads it has."""
    return replace(rollout, examples=(_NOBODY,) * len(rollout.examples))


def unpack(data: bytes) -> Rollout:
    """The rollout that `pack` took."""
    held = nested.of_bytes(data, _KINDS)
    allowed, count = held["allowed"], len(held["group_N"])
    return Rollout(
        examples=tuple(Example(**one) for one in held["examples"]),
        settings=tuple(Sampling.model_validate_json(json.dumps(s)) for s in held["settings"]),
        allowed=allowed and Allowed.of_tensors(allowed[0], count, allowed[1]),
        **{name: held[name] for name in _AS_IT_IS},
    )


def _own(part: Any, _: nested.Path) -> tuple[str, Any] | None:
    if isinstance(part, Turn):
        return "turn", {f.name: getattr(part, f.name) for f in fields(part)}
    return ("spoken", part.messages) if isinstance(part, Spoken) else None
