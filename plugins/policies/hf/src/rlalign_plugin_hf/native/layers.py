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
            return torch.mm(x_MI, self.weight_IO)
        return torch.addmm(self.bias_O, x_MI, self.weight_IO)

    def add_to(self, sum_MO: Tensor, x_MI: Tensor) -> None:
        """Add its output to what is there."""
        if sum_MO.dtype is not self.weight_IO.dtype or x_MI.dtype is not sum_MO.dtype:
            sum_MO.add_(self(x_MI))
            return
        sum_MO.addmm_(x_MI, self.weight_IO)
        if self.bias_O is not None:
            sum_MO.add_(self.bias_O)


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
