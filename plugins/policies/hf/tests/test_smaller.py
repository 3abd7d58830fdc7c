"""Small models of the same architecture, as `rlalign check --smoke` runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Example, Sampling
from rlalign_plugin_hf import CausalLM, Seq2SeqLM
from rlalign_plugin_hf.smaller import smaller

from .conftest import tokenizer

SIZES = {
    "qwen2": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
              "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 4096},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "qwen3_moe": {"hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 128, "num_experts": 32,
                  "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_attention_heads": 8,
                  "num_key_value_heads": 4, "head_dim": 64},
    "t5": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "is_encoder_decoder": True,
           "decoder_start_token_id": 0},
    "bart": {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072,
             "decoder_ffn_dim": 3072, "encoder_attention_heads": 12, "decoder_attention_heads": 12,
             "is_encoder_decoder": True, "decoder_start_token_id": 2},
}  # fmt: skip
TOKENIZERS = {"qwen2": "llama", "qwen3_moe": "llama"}


@pytest.mark.parametrize("kind", SIZES)
def test_a_folder_without_weights_becomes_a_small_model_that_answers(tmp_path: Path, kind: str) -> None:
    """Of the same vocabulary; it samples, and gives the same with a copy."""
    tokenizer(TOKENIZERS.get(kind, kind)).save_pretrained(tmp_path)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **ids, **SIZES[kind]}))
    cls: Any = Seq2SeqLM if SIZES[kind].get("is_encoder_decoder") else CausalLM
    policy = cls(cls.Config(path=str(tmp_path)))
    policy.shrink()
    policy.setup()
    assert sum(p.numel() for p in policy.parameters()) < 150_000
    assert policy.vocabulary == 64
    rollout = policy.sample([Example("0", "w1 w2")], Sampling(max_new_tokens=4), torch.rand(1, 2, 4))
    with torch.no_grad():
        assert torch.equal(policy.features(rollout), policy.copy("frozen").features(rollout))


def test_what_is_small_stays_as_it_is(policy_of: Any) -> None:
    policy = policy_of("llama")
    found = smaller(policy.config, policy.kind, policy._settings)
    assert found.to_dict() == policy._settings.to_dict()
