"""The models and tokenizers of the record: shapes with random weights, and one small language model, trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

END, PAD, UNKNOWN = "<|endoftext|>", "<pad>", "<unk>"
NUMBERS = 500
FIRST_NUMBER = 3

_GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float32"}
_TINY = {**_GPT2, "vocab_size": 1000, "n_positions": 256, "n_embd": 128, "n_layer": 2, "n_head": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2_tiny": {**_TINY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1},
    "s2s_tiny": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": 1000,
        "d_model": 128,
        "d_kv": 64,
        "d_ff": 512,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "decoder_start_token_id": 1,
        "dtype": "float32",
    },
    "gpt2_small_shape": {
        **_GPT2,
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    },
}
TRAINED = "gpt2_tiny_lm"


def words(size: int) -> list[str]:
    """A vocabulary: three special tokens, the numbers from 0 to 499, and words that mean nothing."""
    special = [END, PAD, UNKNOWN]
    numbers = [str(i) for i in range(NUMBERS)]
    return special + numbers + [f"w{i}" for i in range(size - NUMBERS - len(special))]


def lay(name: str, folder: Path) -> Path:
    """The folder of a model: configuration and tokenizer, and weights for the one that was trained."""
    target = folder / name
    if (target / "done").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    shape = SHAPES["gpt2_tiny" if name == TRAINED else name]
    for file, content in {
        "config.json": shape,
        "tokenizer.json": _tokenizer(words(shape["vocab_size"])),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": END if shape["pad_token_id"] == 0 else PAD,
            "unk_token": UNKNOWN,
            "clean_up_tokenization_spaces": False,
        },
    }.items():
        (target / file).write_text(json.dumps(content) + "\n")
    if name == TRAINED:
        loss = pretrain(target)
        (target / "loss.json").write_text(json.dumps({"loss": loss}) + "\n")
    (target / "done").touch()
    return target


def _tokenizer(vocabulary: list[str]) -> dict[str, Any]:
    """`tokenizer.json`: a token a word; decoding joins them with spaces."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": True}
            for i, text in enumerate(vocabulary[:FIRST_NUMBER])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(vocabulary)},
            "unk_token": UNKNOWN,
        },
    }


def text(rows: int, length: int, generator: torch.Generator, vocabulary: int = 1000) -> Tensor:
    """Synthetic text [rows,length]: a token is a number with probability ½, else a word. Of the numbers half
    are the last number plus 1 to 30 (as far as there are numbers), half uniform."""
    first_word = FIRST_NUMBER + NUMBERS

    def uniform(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (rows,), generator=generator)

    def coin() -> Tensor:
        return torch.rand(rows, generator=generator) < 0.5

    last, columns = uniform(0, NUMBERS), []
    for _ in range(length):
        rising = (last + uniform(1, 31)).clamp(max=NUMBERS - 1)
        number = torch.where(coin(), rising, uniform(0, NUMBERS))
        is_number = coin()
        last = torch.where(is_number, number, last)
        columns.append(torch.where(is_number, number + FIRST_NUMBER, uniform(first_word, vocabulary)))
    return torch.stack(columns, 1)


def pretrain(folder: Path, steps: int = 600, rows: int = 64, length: int = 24, lr: float = 1e-3) -> float:
    """Train a causal model of the folder's configuration on `text` and save it; the mean loss of the last ten
    steps. One thread: it comes out the same each time. The record does not say with what learning rate."""
    from transformers import AutoConfig, AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    network = auto.from_config(AutoConfig.from_pretrained(folder)).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.0)
    losses: list[float] = []
    for _ in range(steps):
        ids = text(rows, length, generator)
        loss = network(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    network.save_pretrained(folder)
    torch.set_num_threads(threads)
    return sum(losses[-10:]) / 10
