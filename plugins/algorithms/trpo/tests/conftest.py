"""Four families of tiny random language models, with one tokenizer of two dozen words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *(str(i) for i in range(20)))
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def network(family: str) -> Any:
    import transformers as hf

    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS)}
    if family == "gpt2":
        config = hf.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.2, **size, **IDS
        )
        return hf.GPT2LMHeadModel(config)
    if family == "llama":
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=24, initializer_range=0.2, **size, **IDS,
            )
        )  # fmt: skip
    if family == "t5":
        return hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, initializer_factor=1.5,
                relative_attention_num_buckets=8, decoder_start_token_id=0, **size, **IDS,
            )
        )  # fmt: skip
    return hf.BartForConditionalGeneration(
        hf.BartConfig(
            d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=24, init_std=0.2,
            decoder_start_token_id=2, forced_eos_token_id=None, **size, **IDS,
        )
    )  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A model folder a family."""
    root = tmp_path_factory.mktemp("models")
    for family in ("gpt2", "llama", "t5", "bart"):
        network(family).save_pretrained(root / family)
        tokenizer().save_pretrained(root / family)
    return {family: root / family for family in ("gpt2", "llama", "t5", "bart")}
