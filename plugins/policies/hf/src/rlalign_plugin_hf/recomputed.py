"""Layers that keep only what they read, and are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from rlalign import RLAlignError


@contextmanager
def recomputed(network: Any, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """While this lasts, layers are computed so; `again` is entered when one is computed again.

    Transformers' own switch acts in training mode alone, where some layers also drop out, and computes no prompt once.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise RLAlignError(
            f"train.recompute: a {type(network).__name__} has no layers that can be computed again"
        )
    own = [layer.__dict__.get("forward") for layer in layers]  # somebody may have put one around it
    try:
        for layer in layers:
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, context_fn=lambda: (nullcontext(), again())
            )
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
