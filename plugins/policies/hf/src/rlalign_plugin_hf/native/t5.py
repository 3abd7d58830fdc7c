"""The decode step of T5, gated or not, and mT5.

Legend: n rows, S tokens of a prompt, M rows × columns, C width, H heads, J = 3H, D width of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rlalign_plugin_hf.native.attention import Attention
from rlalign_plugin_hf.native.family import EncoderDecoder
from rlalign_plugin_hf.native.layers import Linear, RMSNorm, activation
from rlalign_plugin_hf.native.weights import Weights


class Layer(NamedTuple):
    """The weights of a decoder's block."""

    before_attention: RMSNorm
    qkv: Linear
    out: Linear
    before_cross: RMSNorm
    cross_q: Linear
    cross_kv: Linear
    cross_out: Linear
    before_mlp: RMSNorm
    up: Linear
    down: Linear


class T5(EncoderDecoder):
    """A bias for how far back a key is instead of positions, scores that are not scaled, root-mean-square norms."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers, self.heads = config.num_decoder_layers, config.num_heads
        self.kv_heads, self.head_dim, self.scale = self.heads, config.d_kv, 1.0
        self._activation = activation(config.dense_act_fn)
        self._gated = config.is_gated_act
        scaled = getattr(config, "scale_decoder_outputs", False)
        self._shrink = config.d_model**-0.5 if scaled else 1.0

    def bind(self, network: Any, weights: Weights) -> None:
        trunk, eps = network.get_decoder(), network.config.layer_norm_epsilon

        def norm(module: Any) -> RMSNorm:
            return RMSNorm(weights.own(module.weight), eps)

        def layer(block: Any) -> Layer:
            own, cross, mlp = block.layer[0], block.layer[1], block.layer[2]
            attention, other, dense = own.SelfAttention, cross.EncDecAttention, mlp.DenseReluDense
            up = (dense.wi_0, dense.wi_1) if self._gated else (dense.wi,)
            return Layer(
                norm(own.layer_norm),
                weights.linear(attention.q, attention.k, attention.v),
                weights.linear(attention.o),
                norm(cross.layer_norm),
                weights.linear(other.q),
                weights.linear(other.k, other.v),
                weights.linear(other.o),
                norm(mlp.layer_norm),
                weights.linear(*up),
                weights.linear(dense.wo),
            )

        self._tokens, self._head = weights.table(trunk.embed_tokens), weights.linear(network.lm_head)
        self._blocks = [layer(block) for block in trunk.block]
        self._last = norm(trunk.final_layer_norm)
        first = trunk.block[0].layer[0].SelfAttention
        self._near_BH = weights.table(first.relative_attention_bias)
        far = first.relative_attention_max_distance
        back = torch.arange(far + 1, device=self.device)
        bucket = first._relative_position_bucket(
            -back, bidirectional=False, num_buckets=first.relative_attention_num_buckets, max_distance=far
        )
        self._bucket = weights.copied("bucket", [bucket], torch.long)

    def relative(self, back: Tensor) -> Tensor:
        bucket = F.embedding(back.clamp_max(len(self._bucket) - 1), self._bucket[:, None])[..., 0]
        return F.embedding(bucket, self._near_BH).to(self.dtype)

    def cross_layers(self) -> list[Linear]:
        return [layer.cross_kv for layer in self._blocks]

    def hidden(self, token_M: Tensor, position_M: Tensor, attention: Attention) -> Tensor:
        x_MC = F.embedding(token_M, self._tokens)
        H, D = self.heads, self.head_dim
        for i, layer in enumerate(self._blocks):
            qkv_MJD = layer.qkv(layer.before_attention(x_MC)).view(-1, 3 * H, D)
            layer.out.add_to(x_MC, attention(i, qkv_MJD))
            q = layer.cross_q(layer.before_cross(x_MC)).view(-1, H, D)
            layer.cross_out.add_to(x_MC, attention.cross(i, q))
            layer.down.add_to(x_MC, self._wide(layer.up(layer.before_mlp(x_MC))))
        return self._last(x_MC)

    def _wide(self, up: Tensor) -> Tensor:
        if not self._gated:
            return self._activation(up)
        gate, rest = up.chunk(2, 1)
        return self._activation(gate).mul_(rest)

    def logits(self, hidden_nC: Tensor) -> Tensor:
        return self._head(hidden_nC if self._shrink == 1 else hidden_nC * self._shrink)
