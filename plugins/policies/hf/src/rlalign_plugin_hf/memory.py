"""About how much memory a network takes while it learns, from its configuration alone.

Legend: C width, I width inside a feed-forward layer, L layers; numbers are of one token.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rlalign.interface.policy import Footprint
from rlalign_plugin_hf.options import LoRA

FLOAT = 4
"""Bytes: what is kept for the backward pass is mostly float32, under autocast too."""
SPARE = 1.5
"""What is kept, times this: gradients on their way, and what an allocator cannot give again at once."""
HALF = 0.4
"""The share of it where weights are held in half precision, and nothing is float32: 0.34 of Qwen2.5-0.5B's shape on an
H200 (1.38 MB a token)."""
ROW = 1024
"""Tokens of a row, where attention keeps a number for each pair of them."""


def footprint(config: Any, network: Any, lora: LoRA | None) -> Footprint:
    """Of a network with this configuration; `network` may be without its numbers (on the device `meta`)."""
    weights = sum(p.numel() for p in network.parameters())
    learned = weights if lora is None else sum(lora.r * sum(p.shape) for p in _matrices(network))
    embedding, layers = network.get_input_embeddings(), layers_of(config)
    token = int(SPARE * FLOAT * layers * _of_a_layer(config, network))
    return Footprint(
        weights=FLOAT * weights,
        learned=FLOAT * learned,
        token=token,
        logits=FLOAT * int(embedding.num_embeddings),
        again=FLOAT * layers * int(embedding.embedding_dim) + token // max(1, layers),
        half=HALF,
    )


def _matrices(network: Any) -> list[Any]:
    """The weights that get an adapter."""
    embedded = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return [p for p in network.parameters() if p.ndim == 2 and id(p) not in embedded]


def layers_of(config: Any) -> int:
    """L: of encoder or decoder, whichever has more, since a token goes through one of them."""
    names = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
    parts = [part for name in ("encoder", "decoder") if (part := getattr(config, name, None)) is not None]
    if parts:
        return max(map(layers_of, parts))
    text = config.get_text_config()
    return max((n for name in names if isinstance(n := getattr(text, name, None), int)), default=12)


def _of_a_layer(config: Any, network: Any) -> int:
    """Numbers that a layer keeps: its two inputs, normed and not, queries, keys and values before and after they are
    turned, and the feed-forward layer's gate, value, activation and product."""
    text = config.get_text_config()

    def said(*names: str) -> int:
        return next((n for name in names if isinstance(n := getattr(text, name, None), int) and n > 0), 0)

    width = said("hidden_size", "d_model") or int(network.get_input_embeddings().embedding_dim)
    inner = said("intermediate_size", "d_ff", "encoder_ffn_dim", "ffn_dim", "n_inner") or 4 * width
    inner = max(inner, said("moe_intermediate_size") * said("num_experts_per_tok"))
    heads = said("num_attention_heads", "num_heads") or 1
    eager = getattr(text, "_attn_implementation", None) == "eager"
    return 10 * width + 4 * inner + (2 * heads * ROW if eager else 0)
