"""A key–value cache with room to grow: a step writes its own column, where `transformers` copies all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Columns added when there is no room left."""


def growing_cache(config: Any) -> DynamicCache:
    """The cache of a model. Layers of other kinds (a sliding window, a state) stay as `transformers` makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:  # layers come as they are met
        cache.layer_class_to_replicate = GrowingLayer
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [n,H,L,D] are the first L columns of larger buffers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._buffers = (
                self._grown(self.keys, key_states, end),
                self._grown(self.values, value_states, end),
            )
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def _grown(self, old: Tensor | None, like: Tensor, length: int) -> Tensor:
        buffer = like.new_empty(*like.shape[:-2], length + ROOM, like.shape[-1])
        if old is not None and old.numel():
            buffer[..., : old.shape[-2], :] = old
        return buffer

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._buffers = None
