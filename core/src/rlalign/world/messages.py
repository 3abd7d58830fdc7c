"""What ranks tell each other: values as bytes, and what is compared of them. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-4
"""By which share of their size sums of numbers may differ: GPUs may add up in another order."""


def packed(value: Any) -> Tensor:
    """Bytes of tensors, bytes, None, bool, int, float and str, in dicts (keys str), lists and tuples."""
    held: list[Tensor] = []

    def said(x: Any) -> Any:
        if isinstance(x, Tensor | bytes):
            one = (
                x if isinstance(x, Tensor) else torch.frombuffer(bytearray(x + b" "), dtype=torch.uint8)[:-1]
            )
            held.append(one.detach().cpu().contiguous())
            kind = str(one.dtype).removeprefix("torch.") if isinstance(x, Tensor) else "bytes"
            return {"tensor": [kind, *one.shape]}
        if isinstance(x, Mapping):
            return {"dict": {key: said(each) for key, each in x.items()}}
        return [said(each) for each in x] if isinstance(x, list | tuple) else x

    words = bytearray(json.dumps(said(value)).encode())
    head = bytearray(len(words).to_bytes(8, "little")) + words
    pieces = [torch.frombuffer(head, dtype=torch.uint8), *(x.reshape(-1).view(torch.uint8) for x in held)]
    return torch.cat(pieces)


def unpacked(data: Tensor) -> Any:
    """The value, its tensors on the CPU, a tuple as a list."""
    at = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
    words = json.loads(data[8:at].numpy().tobytes())

    def meant(said: Any) -> Any:
        nonlocal at
        if isinstance(said, list):
            return [meant(each) for each in said]
        if not isinstance(said, dict):
            return said
        if "dict" in said:
            return {key: meant(each) for key, each in said["dict"].items()}
        kind, *shape = said["tensor"]
        dtype = torch.uint8 if kind == "bytes" else getattr(torch, kind)
        start, at = at, at + torch.Size(shape).numel() * dtype.itemsize
        piece = data[start:at].clone()
        return piece.numpy().tobytes() if kind == "bytes" else piece.view(dtype).reshape(shape)

    return meant(words)


def digest(value: Any, name: str = "") -> dict[str, Any]:
    """What is compared of a nested value, by the names of its leaves."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        below = [digest(each, f"{name}/{key}" if name else str(key)) for key, each in items]
        return {leaf: said for each in below for leaf, said in each.items()}
    if not isinstance(value, Tensor | float):
        return {name: [hashlib.sha256(repr(value).encode()).hexdigest()]}
    x = torch.as_tensor(value).detach().cpu().contiguous()
    bits = hashlib.sha256(x.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    shape = list(x.shape)
    if not x.is_floating_point():
        return {name: [bits, shape]}
    x = x.double().nan_to_num().reshape(-1)
    places = torch.linspace(1.0, 2.0, len(x), dtype=torch.float64)  # the same numbers elsewhere are others
    return {name: [bits, shape, float((x * places).sum()), float(x.abs().sum())]}


def alike(one: list[Any] | None, other: list[Any] | None) -> bool:
    """Whether two leaves are the same: to the bit, or numbers up to rounding."""
    if one == other or one is None or other is None or len(one) < 4 or len(other) < 4:
        return one == other
    size = max(one[3], other[3])
    return one[1] == other[1] and all(abs(one[i] - other[i]) <= ROUNDING * size for i in (2, 3))
