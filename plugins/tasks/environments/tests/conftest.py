"""A tiny chat model over bytes, with a template that writes tools, or like SmolLM2's one that does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
START, END = "<|im_start|>", "<|im_end|>"
_TALK = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TOOLS = "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
TEMPLATES = {"tools": _TOOLS + _TALK, "none": _TALK}


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [START, END, *alphabet]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, additional_special_tokens=[START]
    )
    found.chat_template = template
    return found


@pytest.fixture(scope="session")
def chat_models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A folder for each template."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    network.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=1, bos_token_id=0)
    root = tmp_path_factory.mktemp("chat-models")
    for name, template in TEMPLATES.items():
        network.save_pretrained(root / name)
        _tokenizer(template).save_pretrained(root / name)
    return {name: root / name for name in TEMPLATES}


@pytest.fixture
def sums() -> Path:
    """Questions with their answers, as GSM8K writes them."""
    return HERE / "sums.jsonl"
