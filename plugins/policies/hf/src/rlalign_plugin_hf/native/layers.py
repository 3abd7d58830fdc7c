"""The layers that decode steps are made of. Legend: M rows × columns, I inputs, O outputs, C width."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rlalign_plugin_hf.fused import gelu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": gelu,
    "gelu_pytorch_tanh": gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


WIDE, PIECE = 16_384, 2048
"""Outputs from which a product on a CPU is cut, and those of a piece."""


class Unfit(Exception):
    """Why a network cannot be decoded on its raw weights."""


class Linear(NamedTuple):
    """A linear layer, or several that read the same input."""

    weight_IO: Tensor
    bias_O: Tensor | None

    def __call__(self, x_MI: Tensor) -> Tensor:
        if x_MI.dtype is not self.weight_IO.dtype:
            x_MI = x_MI.to(self.weight_IO.dtype)
        if self.bias_O is None:
            cut = self.weight_IO.shape[1] >= WIDE and x_MI.is_cpu and x_MI.dtype == torch.float32
            return wide(x_MI, self.weight_IO) if cut else torch.mm(x_MI, self.weight_IO)
        return torch.addmm(self.bias_O, x_MI, self.weight_IO)

    def add_to(self, sum_MO: Tensor, x_MI: Tensor) -> None:
        """Add its output to what is there."""
        if sum_MO.dtype is not self.weight_IO.dtype or x_MI.dtype is not sum_MO.dtype:
            sum_MO.add_(self(x_MI))
            return
        sum_MO.addmm_(x_MI, self.weight_IO)
        if self.bias_O is not None:
            sum_MO.add_(self.bias_O)


def wide(x_MI: Tensor, weight_IO: Tensor) -> Tensor:
    """The product of a head, some outputs at a time: a CPU is done with it sooner.

    The bits are those of the whole product, in float32.
    """
    found_MO = x_MI.new_empty(len(x_MI), weight_IO.shape[1])
    for start in range(0, weight_IO.shape[1], PIECE):
        piece = slice(start, start + PIECE)
        torch.mm(x_MI, weight_IO[:, piece], out=found_MO[:, piece])
    return found_MO


class LayerNorm(NamedTuple):
    """Mean zero, variance one, then weight and bias."""

    weight_C: Tensor
    bias_C: Tensor
    eps: float

    def __call__(self, x_MC: Tensor) -> Tensor:
        return torch.layer_norm(x_MC, self.weight_C.shape, self.weight_C, self.bias_C, self.eps)


class RMSNorm(NamedTuple):
    """Mean square one, then a weight."""

    weight_C: Tensor
    eps: float

    def __call__(self, x_MC: Tensor) -> Tensor:
        return F.rms_norm(x_MC, self.weight_C.shape, self.weight_C, self.eps)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name in a config."""
    if name not in ACTIVATIONS:
        raise Unfit(f"its activation is `{name}`")
    return ACTIVATIONS[name]
