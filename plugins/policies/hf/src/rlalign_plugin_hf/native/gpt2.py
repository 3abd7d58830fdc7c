"""GPT-2's decode step.

Legend: M rows × columns, C width, J heads of queries, keys and values, D width of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from rlalign_plugin_hf.native.attention import Attention
from rlalign_plugin_hf.native.family import Family
from rlalign_plugin_hf.native.layers import LayerNorm, Linear, Unfit, activation
from rlalign_plugin_hf.native.weights import Weights


class Layer(NamedTuple):
    """The weights of a block."""

    before_attention: LayerNorm
    qkv: Linear
    out: Linear
    before_mlp: LayerNorm
    up: Linear
    down: Linear


class GPT2(Family):
    """Learned positions, layer norms before attention and MLP, query, key and value in one matrix already."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers, self.heads = config.n_layer, config.n_head
        self.kv_heads, self.head_dim = self.heads, config.n_embd // self.heads
        self.scale = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        self._activation = activation(config.activation_function)
        if config.scale_attn_by_inverse_layer_idx:
            raise Unfit("its attention is scaled by layer")
        if config.add_cross_attention:
            raise Unfit("it has cross-attention")

    def bind(self, network: Any, weights: Weights) -> None:
        trunk, eps = network.transformer, network.config.layer_norm_epsilon

        def norm(module: Any) -> LayerNorm:
            return LayerNorm(weights.own(module.weight), weights.own(module.bias), eps)

        self._tokens, self._places = weights.table(trunk.wte), weights.table(trunk.wpe)
        self._blocks = [
            Layer(
                norm(block.ln_1),
                weights.linear(block.attn.c_attn),
                weights.linear(block.attn.c_proj),
                norm(block.ln_2),
                weights.linear(block.mlp.c_fc),
                weights.linear(block.mlp.c_proj),
            )
            for block in trunk.h
        ]
        self._last, self._head = norm(trunk.ln_f), weights.linear(network.lm_head)

    def hidden(self, token_M: Tensor, position_M: Tensor, attention: Attention) -> Tensor:
        x_MC = F.embedding(token_M, self._tokens).add_(F.embedding(position_M, self._places))
        for i, layer in enumerate(self._blocks):
            qkv_MJD = layer.qkv(layer.before_attention(x_MC)).view(-1, 3 * self.heads, self.head_dim)
            layer.out.add_to(x_MC, attention(i, qkv_MJD))
            layer.down.add_to(x_MC, self._activation(layer.up(layer.before_mlp(x_MC))))
        return self._last(x_MC)

    def logits(self, hidden_nC: Tensor) -> Tensor:
        return self._head(hidden_nC)
