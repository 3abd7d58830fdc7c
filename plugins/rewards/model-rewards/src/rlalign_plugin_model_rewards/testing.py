"""Tiny random scorers of every shape, for tests: folders as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-:;[]<>|/_"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NLI = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
_fast: Any = transformers.PreTrainedTokenizerFast


def word_pieces() -> Any:
    """BERT's way: `[CLS] text [SEP]`, pairs with types, letters and a few words."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "film",
        "was",
        "man",
        "horse",
        "good",
        "bad",
    ]
    vocabulary = [*words, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    named = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return _fast(
        tokenizer_object=made,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{kind}_token": token for kind, token in named.items()},
    )


def byte_pairs(single: str, pair: str | None = None, *, chat: bool = False, pad: str | None = None) -> Any:
    """GPT-2's way, every byte a token, with special tokens put round it as a template says."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({w: i for i, w in enumerate([*specials, *alphabet])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(specials)
    if single != "$A":
        made.post_processor = processors.TemplateProcessing(
            single=single, pair=pair or f"{single} $B:1", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    tokens: dict[str, str] = {"bos_token": "</s>" if single == "$A" else "<s>"}
    tokens["eos_token"] = "<|im_end|>" if chat else "</s>"
    if pad is not None:
        tokens["pad_token"] = pad
    tokenizer: Any = _fast(tokenizer_object=made, **tokens)
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


BYTES = 6 + 256
_BERT: dict[str, Any] = {
    "vocab_size": 12 + 2 * len(LETTERS),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_BART: dict[str, Any] = {
    "vocab_size": BYTES,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 192,
    "init_std": 0.3,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_T5: dict[str, Any] = {
    "vocab_size": BYTES,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "initializer_factor": 1.5,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_LLAMA: dict[str, Any] = {
    "vocab_size": BYTES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 192,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 5,
    "pad_token_id": 5,
}
_GPT2: dict[str, Any] = {
    "vocab_size": BYTES,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 192,
    "initializer_range": 0.3,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
_ROBERTA = {**_BERT, "vocab_size": BYTES, "max_position_embeddings": 194, "type_vocab_size": 1}
_ROBERTA |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_LABELS = {"id2label": NLI, "label2id": {name: i for i, name in NLI.items()}}
_ONE = {"id2label": {0: "score"}, "label2id": {"score": 0}}

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", _BERT),
    "roberta": ("RobertaModel", "RobertaConfig", _ROBERTA),
    "bert-nli": ("BertForSequenceClassification", "BertConfig", {**_BERT, **_LABELS}),
    "bert-reward": ("BertForSequenceClassification", "BertConfig", {**_BERT, **_ONE}),
    "gpt2-classifier": ("GPT2ForSequenceClassification", "GPT2Config", {**_GPT2, **_LABELS}),
    "llama-reward": ("LlamaForSequenceClassification", "LlamaConfig", {**_LLAMA, **_ONE}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BART),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
}
"""Class of the network and of its configuration, and what that says."""


def tokenizer_of(shape: str) -> Any:
    """As models of this shape have them; the chat models' pads with the token that ends a message."""
    family = shape.partition("-")[0]
    match family:
        case "bert":
            return word_pieces()
        case "gpt2":
            return byte_pairs("$A")
        case "llama":
            return byte_pairs("<s> $A", "<s> $A <s> $B:1", chat=True, pad="<|im_end|>")
        case "t5":
            return byte_pairs("$A </s>", "$A </s> $B </s>", pad="<pad>")
    return byte_pairs("<s> $A </s>", "<s> $A </s> </s> $B </s>", pad="<pad>")


def tiny_scorer(folder: Path, shape: str, **more: Any) -> Path:
    """Write a random model of a shape, with its tokenizer; returns the folder."""
    network, config, said = SHAPES[shape]
    settings = getattr(transformers, config)(**{**said, **more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, shape)))
        made = getattr(transformers, network)(settings)
        for parameter in made.parameters():  # biases are zero at first, and a head small
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    tokenizer_of(shape).save_pretrained(folder)
    return folder


def tiny_scorers(folder: Path) -> Mapping[str, Path]:
    """One of each shape."""
    return {shape: tiny_scorer(folder / shape, shape) for shape in SHAPES}
