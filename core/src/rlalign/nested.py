"""Nested values as tensors and JSON, and as bytes; nothing is unpickled.

A value is made of tensors, bytes, None, bool, int, float and str, in dicts, lists and tuples. An object in its JSON has
one key, which says what it stands for: {"tensor": name}, {"bytes": name}, {"dict": {…}}, {"items": [[key, value], …]}
(a dict with other than string keys), {"tuple": […]}, {"float": "inf"}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from safetensors.torch import load, save
from torch import Tensor

Path = tuple[object, ...]
Own = Callable[[Any, Path], tuple[str, Any] | None]
"""Asked of each part, with its place, before all else: it may refuse it, or say what it is called and made of."""
_TREE = "__tree__"
_RESERVED = {_TREE, "__metadata__"}


def split(nested: Any, own: Own = lambda part, path: None) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a nested value, and the rest as JSON, from which `join` restores it."""
    tensors: dict[str, Tensor] = {}

    def kept(x: Tensor, path: Path) -> str:
        name = "/".join(map(str, path)) or "tensor"
        while name in tensors or name in _RESERVED:
            name += "'"  # {0: …, "0": …}
        tensors[name] = x
        return name

    def said(part: Any, path: Path) -> Any:
        if (known := own(part, path)) is not None:
            return {known[0]: said(known[1], path)}
        if isinstance(part, Tensor):
            return {"tensor": kept(part, path)}
        if isinstance(part, bytes):
            return {"bytes": kept(_as_tensor(part), path)}
        if isinstance(part, Mapping):
            items = [(key, said(each, (*path, key))) for key, each in part.items()]
            if all(isinstance(key, str) for key in part):
                return {"dict": dict(items)}
            return {"items": [[said(key, path), each] for key, each in items]}
        if isinstance(part, list | tuple):
            entries = [said(each, (*path, i)) for i, each in enumerate(part)]
            return {"tuple": entries} if isinstance(part, tuple) else entries
        if isinstance(part, numpy.generic):
            part = part.item()
        return {"float": str(part)} if isinstance(part, float) and part - part != 0 else part

    tree = said(nested, ())
    return tensors, tree


def join(
    tensors: Mapping[str, Tensor], tree: Any, kinds: Mapping[str, Callable[[Any], Any]] | None = None
) -> Any:
    """The value that `split` took apart; `kinds` make what `own` named."""
    known: dict[str, Callable[[Any], Any]] = {
        "tensor": tensors.__getitem__,
        "bytes": lambda name: tensors[name].numpy().tobytes(),
        "dict": lambda each: {key: meant(x) for key, x in each.items()},
        "items": lambda each: {meant(key): meant(x) for key, x in each},
        "tuple": lambda each: tuple(meant(x) for x in each),
        "float": float,
    }

    def meant(said: Any) -> Any:
        if isinstance(said, list):
            return [meant(each) for each in said]
        if not isinstance(said, dict):
            return said
        ((kind, content),) = said.items()
        return known[kind](content) if kind in known else (kinds or {})[kind](meant(content))

    return meant(tree)


def to_bytes(nested: Any, own: Own = lambda part, path: None) -> bytes:
    """A nested value as bytes."""
    tensors, tree = split(nested, own)
    # Each on its own: safetensors refuses several views of one.
    held = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    return save({**held, _TREE: _as_tensor(json.dumps(tree, allow_nan=False).encode())})


def of_bytes(data: bytes, kinds: Mapping[str, Callable[[Any], Any]] | None = None) -> Any:
    """The value that `to_bytes` took, its tensors on the CPU."""
    tensors = load(data)
    return join(tensors, json.loads(tensors.pop(_TREE).numpy().tobytes()), kinds)


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
