"""BART's decode step.

Legend: n rows, S tokens of a prompt, M rows × columns, C width, H heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from rlalign_plugin_hf.native.attention import Attention
from rlalign_plugin_hf.native.family import EncoderDecoder
from rlalign_plugin_hf.native.layers import LayerNorm, Linear, activation
from rlalign_plugin_hf.native.weights import Weights


class Layer(NamedTuple):
    """The weights of a decoder's block."""

    qkv: Linear
    out: Linear
    after_attention: LayerNorm
    cross_q: Linear
    cross_kv: Linear
    cross_out: Linear
    after_cross: LayerNorm
    up: Linear
    down: Linear
    after_mlp: LayerNorm


class Bart(EncoderDecoder):
    """Learned positions from an offset on, layer norms after each sum, a bias of the logits."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers, self.heads = config.decoder_layers, config.decoder_attention_heads
        self.kv_heads, self.head_dim = self.heads, config.d_model // self.heads
        self.scale = self.head_dim**-0.5
        self._activation = activation(config.activation_function)

    def bind(self, network: Any, weights: Weights) -> None:
        trunk = network.get_decoder()

        def norm(module: Any) -> LayerNorm:
            return LayerNorm(weights.own(module.weight), weights.own(module.bias), module.eps)

        def layer(block: Any) -> Layer:
            own, cross = block.self_attn, block.encoder_attn
            return Layer(
                weights.linear(own.q_proj, own.k_proj, own.v_proj),
                weights.linear(own.out_proj),
                norm(block.self_attn_layer_norm),
                weights.linear(cross.q_proj),
                weights.linear(cross.k_proj, cross.v_proj),
                weights.linear(cross.out_proj),
                norm(block.encoder_attn_layer_norm),
                weights.linear(block.fc1),
                weights.linear(block.fc2),
                norm(block.final_layer_norm),
            )

        words = getattr(
            trunk.embed_tokens, "base_layer", trunk.embed_tokens
        )  # an adapter may stand around it
        self._tokens, self._times = weights.table(trunk.embed_tokens), words.embed_scale
        self._places, self._offset = weights.table(trunk.embed_positions), trunk.embed_positions.offset
        self._first = norm(trunk.layernorm_embedding)
        self._blocks = [layer(block) for block in trunk.layers]
        self._head = weights.linear(network.lm_head)
        self._bias_1V = weights.own(network.final_logits_bias)

    def cross_layers(self) -> list[Linear]:
        return [layer.cross_kv for layer in self._blocks]

    def hidden(self, token_M: Tensor, position_M: Tensor, attention: Attention) -> Tensor:
        x_MC = F.embedding(token_M, self._tokens)
        if self._times != 1:
            x_MC = x_MC * self._times
        x_MC = self._first(x_MC + F.embedding(position_M + self._offset, self._places))
        H, D = self.heads, self.head_dim
        for i, layer in enumerate(self._blocks):
            layer.out.add_to(x_MC, attention(i, layer.qkv(x_MC).view(-1, 3 * H, D)))
            x_MC = layer.after_attention(x_MC)
            layer.cross_out.add_to(x_MC, attention.cross(i, layer.cross_q(x_MC).view(-1, H, D)))
            x_MC = layer.after_cross(x_MC)
            layer.down.add_to(x_MC, self._activation(layer.up(x_MC)))
            x_MC = layer.after_mlp(x_MC)
        return x_MC

    def logits(self, hidden_nC: Tensor) -> Tensor:
        return self._head(hidden_nC) + self._bias_1V
