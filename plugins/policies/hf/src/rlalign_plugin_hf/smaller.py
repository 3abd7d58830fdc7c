"""The same architecture with few layers of little width: what shows faults of wiring in seconds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from rlalign_plugin_hf.loading import network_of, seeded
from rlalign_plugin_hf.options import Kind, Source

LAYERS, WIDTH, HEADS, INNER, EXPERTS = 2, 32, 2, 64, 4
_LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
_WIDTHS = ("hidden_size", "d_model", "embedding_size", "word_embed_proj_dim", "cross_attention_hidden_size")
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
_INNER = ("intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim",
          "moe_intermediate_size", "shared_expert_intermediate_size")  # fmt: skip
_EXPERTS = {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2}


def smaller(options: Source, kind: Kind, config: Any) -> Any:
    """The configuration with fewer layers and less width, with fewer layers alone where that does not compute, or as it
    is. Vocabulary and positions stay."""
    for narrow in (True, False):
        candidate = copy.deepcopy(config)
        for part in _parts(candidate):
            _with_few_layers(part)
            if narrow and _said(part, "hidden_size") > 2 * WIDTH:
                _narrowed(part)
        try:
            _compute(_made(options, kind, candidate), kind)
        except Exception:  # sizes that do not go together: each architecture has rules of its own
            continue
        return candidate
    return config


def load_small(options: Source, kind: Kind, config: Any) -> Any:
    """A small network with random weights, in float32 and in evaluation mode."""
    return _made(options, kind, smaller(options, kind, config))


def _made(options: Source, kind: Kind, config: Any) -> Any:
    with seeded(0):
        return network_of(options, kind, config).eval()


def _parts(config: Any) -> Iterator[Any]:
    """The configuration, and those of its parts."""
    seen: dict[int, Any] = {id(config): config}
    for part in (
        config.get_text_config(),
        getattr(config, "encoder", None),
        getattr(config, "decoder", None),
    ):
        if hasattr(part, "to_dict"):
            seen.setdefault(id(part), part)
    return iter(seen.values())


def _said(part: Any, name: str) -> int:
    found = getattr(part, name, None)
    return found if isinstance(found, int) else 0


def _with_few_layers(part: Any) -> None:
    for name in _LAYERS:
        there = _said(part, name)
        if there > LAYERS:
            for key, value in list(vars(part).items()):
                if isinstance(value, list) and len(value) == there:  # one word for each layer
                    setattr(part, key, value[:LAYERS])
            setattr(part, name, LAYERS)


def _narrowed(part: Any) -> None:
    heads, groups = _said(part, "num_attention_heads"), _said(part, "num_key_value_heads")
    sizes = dict.fromkeys(_WIDTHS, WIDTH) | dict.fromkeys(_HEADS, HEADS) | dict.fromkeys(_INNER, INNER)
    sizes |= {"head_dim": WIDTH // HEADS, "d_kv": WIDTH // HEADS}
    sizes["num_key_value_heads"] = HEADS if groups >= heads else 1
    for name, size in sizes.items():
        if _said(part, name):
            setattr(part, name, size)
    for name, most in _EXPERTS.items():
        if _said(part, name) > most:
            setattr(part, name, most)


def _compute(network: Any, kind: Kind) -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        network(input_ids=ids, **({"decoder_input_ids": ids} if kind == "seq2seq" else {}))
