"""BLEURT: BERT's encoder, and a number from what it makes of [CLS] (Sellam et al. 2020, eq. 1–2).

score = w · tanh(W h_[CLS] + b) + c
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

Gelu = Literal["tanh", "erf"]

EPSILON = 1e-12
PROJECTION = "encoder.embedding_projection"
LAYER = {
    "attention.self.query": ("hidden", "hidden"),
    "attention.self.key": ("hidden", "hidden"),
    "attention.self.value": ("hidden", "hidden"),
    "attention.output.dense": ("hidden", "hidden"),
    "intermediate.dense": ("intermediate", "hidden"),
    "output.dense": ("hidden", "intermediate"),
}


@dataclass(frozen=True)
class Sizes:
    """How large a model is."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    types: int
    positions: int

    def shapes(self, embedding: int) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, by name, where embeddings are of this width."""
        found: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, embedding),
            "embeddings.token_type_embeddings.weight": (self.types, embedding),
            "embeddings.position_embeddings.weight": (self.positions, embedding),
            **_norm("embeddings.LayerNorm", embedding),
        }
        if embedding != self.hidden:
            found |= _dense(PROJECTION, self.hidden, embedding)
        for i in range(self.layers):
            for name, (wide, deep) in LAYER.items():
                found |= _dense(f"encoder.layer.{i}.{name}", getattr(self, wide), getattr(self, deep))
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                found |= _norm(f"encoder.layer.{i}.{name}", self.hidden)
        found |= _dense("pooler.dense", self.hidden, self.hidden)
        return found | _dense("classifier", 1, self.hidden)


def _dense(name: str, wide: int, deep: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (wide, deep), f"{name}.bias": (wide,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


class Bleurt:
    """The model as a function of its weights; nothing in it changes, so that threads may share it."""

    def __init__(self, weights: Mapping[str, Tensor], sizes: Sizes, gelu: Gelu) -> None:
        self.weights = weights
        self.sizes = sizes
        self.gelu = "tanh" if gelu == "tanh" else "none"

    def __call__(self, ids_BL: Tensor, segments_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """[B]: the scores of B pairs of at most L tokens; where the mask is False there is none."""
        w = self.weights
        x_BLE = (
            w["embeddings.word_embeddings.weight"][ids_BL]
            + w["embeddings.token_type_embeddings.weight"][segments_BL]
            + w["embeddings.position_embeddings.weight"][: ids_BL.shape[1]]
        )
        x_BLH = self._norm("embeddings.LayerNorm", x_BLE)
        if f"{PROJECTION}.weight" in w:
            x_BLH = self._dense(PROJECTION, x_BLH)
        for i in range(self.sizes.layers):
            last = i == self.sizes.layers - 1
            # Of the last layer only [CLS] is read.
            x_BLH = self._layer(f"encoder.layer.{i}", x_BLH[:, :1] if last else x_BLH, x_BLH, mask_BL)
        h_BH = torch.tanh(self._dense("pooler.dense", x_BLH[:, 0]))
        return self._dense("classifier", h_BH)[:, 0]

    def _layer(self, name: str, x_BQH: Tensor, all_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """What a layer makes of some places, which look at all of them."""
        q, k, v = (
            self._dense(f"{name}.attention.self.{part}", x)
            .unflatten(-1, (self.sizes.heads, -1))
            .transpose(1, 2)
            for part, x in (("query", x_BQH), ("key", all_BLH), ("value", all_BLH))
        )
        seen = scaled_dot_product_attention(q, k, v, attn_mask=mask_BL[:, None, None, :])
        seen_BQH = self._dense(f"{name}.attention.output.dense", seen.transpose(1, 2).flatten(2))
        x_BQH = self._norm(f"{name}.attention.output.LayerNorm", x_BQH + seen_BQH)
        wide = gelu(self._dense(f"{name}.intermediate.dense", x_BQH), approximate=self.gelu)
        return self._norm(f"{name}.output.LayerNorm", x_BQH + self._dense(f"{name}.output.dense", wide))

    def _dense(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return linear(x.to(weight.dtype), weight, self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, EPSILON)
