"""Random models of a few words, for the tests of other plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ("<end>", "<unk>", *(f"w{i}" for i in range(20)))


def tiny_model(folder: Path, kind: Literal["causal-lm", "seq2seq-lm"]) -> Path:
    """Write a GPT-2 or a T5 of one layer, and the tokenizer whose tokens are these words; returns the folder."""
    shape: dict[str, Any] = {"vocab_size": len(WORDS), "eos_token_id": 0}
    if kind == "causal-lm":
        shape |= {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
        shape |= {"bos_token_id": 0}
    else:
        shape |= {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 32, "dropout_rate": 0.0}
        shape |= {"pad_token_id": 0, "decoder_start_token_id": 0, "initializer_factor": 3.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: PreTrainedModel = (
            GPT2LMHeadModel(GPT2Config(**shape))
            if kind == "causal-lm"
            else T5ForConditionalGeneration(T5Config(**shape))
        )
    network.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends: dict[str, Any] = {"eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>"}
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=words, **ends)  # type: ignore[no-untyped-call]
    made.save_pretrained(folder)
    return folder
