"""The weights a decode step reads: the network's own wherever that is possible, copies where it is not.

Matrices that read the same input are made one. In the network's own precision that costs no memory: when a
network is loaded, such parameters are moved to be rows of the joint matrix, and an update of them is seen at once.
Copies remain where the step computes in another precision than the network, where an adapter has to be added into a
weight, and where something else has moved the parameters since.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlalign_plugin_hf.native.layers import Linear, Unfit


class Weights:
    """Reads a network's weights, and knows whether they have changed since."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        """What matrices are multiplied in; everything else stays in the network's precision."""
        self._join = False
        self._copies: dict[Any, Tensor] = {}
        self._seen: list[tuple[Tensor, int, int]] = []

    def changed(self) -> bool:
        """Whether a weight that was read was written to, or moved, since."""
        return not self._seen or any(
            weight._version != version or weight.data_ptr() != place for weight, version, place in self._seen
        )

    def begin(self, join: bool) -> None:
        """Everything is about to be read again; with `join`, parameters may be moved."""
        self._seen, self._join = [], join

    def addresses(self) -> tuple[int, ...]:
        """Where all that was read stands, copies included."""
        return (
            *(weight.data_ptr() for weight, _, _ in self._seen),
            *(copy.data_ptr() for copy in self._copies.values()),
        )

    def linear(self, *modules: nn.Module) -> Linear:
        """One layer of these, which read the same input. Copies are written where they were before."""
        from transformers.pytorch_utils import Conv1D

        bases = [_base(module) for module in modules]
        across = type(bases[0]) is Conv1D
        if any(type(base) is not (Conv1D if across else nn.Linear) for base in bases):
            raise Unfit(f"a {type(bases[0]).__name__} is no plain linear layer")
        if across and len(bases) > 1:
            raise Unfit("its layers of the kind Conv1D are not joint")
        weight = self._joint(modules, "weight")
        biases = [getattr(base, "bias", None) for base in bases]
        if any(bias is None for bias in biases) != all(bias is None for bias in biases):
            raise Unfit("some of its query, key and value layers have biases and others none")
        bias = None if biases[0] is None else self._joint(bases, "bias")
        return Linear(weight if across else weight.t(), bias)

    def own(self, weight: Tensor) -> Tensor:
        """A norm's weight or the like, in the network's precision."""
        self._see(weight)
        return weight.detach()

    def table(self, module: nn.Module) -> Tensor:
        """An embedding's rows, in the network's precision."""
        if isinstance(base := _base(module), nn.Embedding):
            if base is module:
                return self.own(base.weight)
            return self.copied(module, (self._effective(module, "weight"),), base.weight.dtype)
        raise Unfit(f"its embedding is a {type(base).__name__}")

    def _joint(self, modules: Sequence[nn.Module], name: str) -> Tensor:
        sources = [getattr(_base(module), name) for module in modules]
        plain = all(_base(module) is module or module.disable_adapters for module in modules)
        if plain and all(source.dtype == self.dtype for source in sources):
            if self._join:
                join(sources)
            if (whole := joint(sources)) is not None:
                for source in sources:
                    self._see(source)
                return whole
        return self.copied(
            (*modules, name), [self._effective(module, name) for module in modules], self.dtype
        )

    def copied(self, key: Any, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """These rows as one tensor, which stays where it is when it is made again under the same key."""
        rows = sum(len(part) for part in parts)
        copy = self._copies.get(key)
        if copy is None or copy.device != parts[0].device or copy.dtype != dtype:
            copy = self._copies[key] = parts[0].new_empty(rows, *parts[0].shape[1:], dtype=dtype)
        for mine, part in zip(copy.split([len(part) for part in parts]), parts, strict=True):
            mine.copy_(part)
        return copy

    def _effective(self, module: Any, name: str) -> Tensor:
        """A weight with its adapter, if that is on, added."""
        from rlalign_plugin_hf.adapter import added

        base = _base(module)
        weight: Tensor = getattr(base, name)
        self._see(weight)
        if base is module or name != "weight":
            return weight.detach()
        delta, factors = added(module)
        for factor in factors:
            self._see(factor)
        return weight.detach() if delta is None else weight.detach() + delta

    def _see(self, weight: Tensor) -> None:
        self._seen.append((weight, weight._version, weight.data_ptr()))


def _base(module: Any) -> Any:
    """The layer itself, where an adapter is around it."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def joint(parts: Sequence[Tensor]) -> Tensor | None:
    """One tensor whose consecutive rows these are, if they stand so."""
    first, place = parts[0].detach(), parts[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        if (
            part.data_ptr() != place
            or part.untyped_storage().data_ptr() != storage
            or not part.is_contiguous()
        ):
            return None
        place += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def join(parts: Sequence[Tensor]) -> None:
    """Let these parameters be consecutive rows of one tensor."""
    if len(parts) > 1 and joint(parts) is None:
        whole = torch.cat([part.detach() for part in parts])
        for part, mine in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = mine
