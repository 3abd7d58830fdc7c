"""The decode step of Llama and its kin: Mistral, Qwen2, Qwen3.

Legend: M rows × columns, C width, H query heads, K key heads, J = H + 2K, D width of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rlalign_plugin_hf.native.attention import Attention
from rlalign_plugin_hf.native.family import Family
from rlalign_plugin_hf.native.layers import Linear, RMSNorm, Unfit, activation
from rlalign_plugin_hf.native.weights import Weights

ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies are the same for rows of any length."""


class Layer(NamedTuple):
    """The weights of a block."""

    before_attention: RMSNorm
    qkv: Linear
    of_queries: RMSNorm | None
    of_keys: RMSNorm | None
    out: Linear
    before_mlp: RMSNorm
    gate_up: Linear
    down: Linear


class Llama(Family):
    """Rotary positions, root-mean-square norms before attention and MLP, a gated MLP, grouped queries."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.scale = self.head_dim**-0.5
        self._activation = activation(config.hidden_act)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None)
        if config.model_type == "mistral" or "sliding_attention" in kinds:
            self.window = window
        if other := kinds - {"full_attention", "sliding_attention"}:
            raise Unfit(f"it has layers of `{min(other)}`")
        rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rotation not in ROTATIONS:
            raise Unfit(f"its rotary positions are of the type `{rotation}`")

    def bind(self, network: Any, weights: Weights) -> None:
        trunk, eps = network.model, network.config.rms_norm_eps

        def norm(module: Any) -> RMSNorm | None:
            return None if module is None else RMSNorm(weights.own(module.weight), eps)

        def layer(block: Any) -> Layer:
            attention, mlp = block.self_attn, block.mlp
            first, second = norm(block.input_layernorm), norm(block.post_attention_layernorm)
            assert first is not None and second is not None
            return Layer(
                first,
                weights.linear(attention.q_proj, attention.k_proj, attention.v_proj),
                norm(getattr(attention, "q_norm", None)),
                norm(getattr(attention, "k_norm", None)),
                weights.linear(attention.o_proj),
                second,
                weights.linear(mlp.gate_proj, mlp.up_proj),
                weights.linear(mlp.down_proj),
            )

        self._tokens, self._head = weights.table(trunk.embed_tokens), weights.linear(network.lm_head)
        self._blocks = [layer(block) for block in trunk.layers]
        self._last = RMSNorm(weights.own(trunk.norm.weight), eps)
        frequency = weights.own(trunk.rotary_emb.inv_freq)
        if 2 * len(frequency) != self.head_dim:
            raise Unfit("its rotary positions turn a part of each head only")
        exact = torch.promote_types(self._tokens.dtype, torch.float32)
        # The cosine of a negative angle is that of the angle: only the sine takes its sign, as the rotation needs.
        self._frequency_D = weights.copied("frequency", [-frequency, frequency], exact)
        self._stretch = float(trunk.rotary_emb.attention_scaling)

    def hidden(self, token_M: Tensor, position_M: Tensor, attention: Attention) -> Tensor:
        x_MC = F.embedding(token_M, self._tokens)
        cos_M1D, sin_M1D = self._turns(position_M, x_MC.dtype)
        H, K, D = self.heads, self.kv_heads, self.head_dim
        for i, layer in enumerate(self._blocks):
            qkv_MJD = layer.qkv(layer.before_attention(x_MC)).view(-1, H + 2 * K, D)
            qk = qkv_MJD[:, : H + K]
            if layer.of_queries is not None and layer.of_keys is not None:
                qk = torch.cat([layer.of_queries(qk[:, :H]), layer.of_keys(qk[:, H:])], 1)
            torch.addcmul(qk * cos_M1D, qk.roll(D // 2, -1), sin_M1D, out=qkv_MJD[:, : H + K])
            layer.out.add_to(x_MC, attention(i, qkv_MJD))
            gate_up = layer.gate_up(layer.before_mlp(x_MC))
            gate, up = gate_up.chunk(2, 1)
            layer.down.add_to(x_MC, self._activation(gate).mul_(up))
        return self._last(x_MC)

    def _turns(self, position_M: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(cosine, sine) [M,1,D]."""
        angle_M1D = position_M.to(self._frequency_D.dtype)[:, None, None] * self._frequency_D
        cos, sin = angle_M1D.cos(), angle_M1D.sin()
        if self._stretch != 1:
            cos, sin = cos * self._stretch, sin * self._stretch
        return cos.to(dtype), sin.to(dtype)

    def logits(self, hidden_nC: Tensor) -> Tensor:
        return self._head(hidden_nC)
