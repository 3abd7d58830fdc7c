"""What is compared of values that must be the same on all ranks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-4
"""By which share of their size sums of numbers may differ: GPUs may add up in another order."""


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
    shape = [*x.shape, *(int((x == value).sum()) for value in (math.inf, -math.inf)), int(x.isnan().sum())]
    if not x.is_floating_point():
        return {name: [bits, shape]}
    x = x.double().nan_to_num(0.0, 0.0, 0.0).reshape(-1)
    places = torch.linspace(1.0, 2.0, len(x), dtype=torch.float64)  # the same numbers elsewhere are others
    return {name: [bits, shape, float((x * places).sum()), float(x.abs().sum())]}


def alike(one: list[Any] | None, other: list[Any] | None) -> bool:
    """Whether two leaves are the same: to the bit, or numbers up to rounding."""
    if one == other or one is None or other is None or len(one) < 4 or len(other) < 4:
        return one == other
    size = max(one[3], other[3])
    return one[1] == other[1] and all(abs(one[i] - other[i]) <= ROUNDING * size for i in (2, 3))
