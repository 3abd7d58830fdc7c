"""A network's shape for the cost model, from its configuration and its modules without numbers.

Legend: V vocabulary, C width.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rlalign.costs.shape import Shape
from rlalign_plugin_hf.memory import footprint, layers_of
from rlalign_plugin_hf.options import Kind, LoRA

RANK = 16
"""Of the adapters that would learn with `lora`: its default."""


def shape(config: Any, network: Any, lora: LoRA | None, kind: Kind) -> Shape:
    """Of a network on the device `meta`."""
    text = config.get_text_config(decoder=True)
    embedding = network.get_input_embeddings()
    vocabulary, width = int(embedding.num_embeddings), int(embedding.embedding_dim)
    apart = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    if (head := network.get_output_embeddings()) is not None:
        apart |= {id(p) for p in head.parameters()}
    used = _used_experts(text)
    encoder = network.get_encoder() if kind == "seq2seq" else None
    encoding = {id(p) for p in encoder.parameters()} if encoder is not None else set()
    multiplied = {"prompt": 0.0, "response": 0.0}
    resting = 0.0
    for name, parameter in network.named_parameters():
        if id(parameter) in apart or parameter.ndim < 2:
            continue
        share = used if ".experts." in name else 1.0
        part = "prompt" if id(parameter) in encoding else "response"
        multiplied[part] += share * parameter.numel()
        resting += (1 - share) * parameter.numel()
    layers = layers_of(config)
    kept, read = _attention(text, width)
    needs = footprint(config, network, lora)
    return Shape(
        weights=sum(p.numel() for p in network.parameters()),
        learned=needs.learned // 4,
        adapters=sum(RANK * sum(p.shape) for p in network.parameters() if p.ndim == 2 and id(p) not in apart),
        prompt=int(multiplied["prompt" if encoding else "response"]),
        response=int(multiplied["response"]),
        head=vocabulary * width,
        layers=layers,
        width=width,
        vocabulary=vocabulary,
        cache=2 * layers * kept,
        block=_block(network),
        kept=needs.token,
        half=needs.half,
        attention=layers * read,
        resting=int(resting),
        once=kind == "causal",
    )


def _said(config: Any, *names: str) -> int:
    return next((n for name in names if isinstance(n := getattr(config, name, None), int) and n > 0), 0)


def _attention(text: Any, width: int) -> tuple[int, int]:
    """(numbers of a token's keys, numbers of all its queries), of one layer."""
    heads = _said(text, "num_attention_heads", "num_heads", "n_head") or 1
    size = _said(text, "head_dim", "d_kv") or width // heads
    return size * (_said(text, "num_key_value_heads") or heads), size * heads


def _used_experts(text: Any) -> float:
    """The share of all experts that a token goes through."""
    there = _said(text, "num_experts", "num_local_experts", "n_routed_experts")
    return _said(text, "num_experts_per_tok") / there if there else 1.0


def _block(network: Any) -> int:
    """Weights of the largest layer."""
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
    return max((sum(p.numel() for p in layer.parameters()) for m in lists for layer in m), default=0)
