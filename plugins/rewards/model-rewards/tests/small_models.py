"""Tiny random encoders and language models with tokenizers of sixty words, and data for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = (*SPECIALS, "good", "bad", "great", "awful", *(f"w{i}" for i in range(52)))
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def tokenizer(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind != "gpt2":
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1" if kind == "bert" else "<s> $A </s> </s> $B </s>",
            special_tokens=[(word, i) for i, word in enumerate(SPECIALS)],
        )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind != "gpt2":
        tokens |= {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=40, **tokens)
    fast.chat_template = template
    return fast


@cache
def folder(kind: str, template: str | None = None) -> str:
    """A bare encoder (`bert`, `roberta`) or a language model (`gpt2`)."""
    path = mkdtemp(prefix=f"{kind}-")
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    network: Any
    if kind == "bert":
        network = BertModel(BertConfig(max_position_embeddings=40, **small))
    elif kind == "roberta":
        network = RobertaModel(
            RobertaConfig(max_position_embeddings=41, bos_token_id=1, eos_token_id=2, **small)
        )
    else:
        network = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=40, initializer_range=0.3,
                bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    network.save_pretrained(path)
    tokenizer(kind, template).save_pretrained(path)
    return path


@cache
def labelled() -> str:
    """Texts and the label that their words give away."""
    rows = []
    for i in range(40):
        word, label = (("good", "pos"), ("bad", "neg"), ("great", "pos"), ("awful", "neg"))[i % 4]
        rows.append({"id": str(i), "prompt": f"w{i} {word} w{(7 * i) % 50}", "responses": [label]})
    return _written({"train": rows[:28], "val": rows[28:]})


@cache
def compared() -> str:
    """Prompts with responses and scores."""
    rows: list[Mapping[str, Any]] = []
    for i in range(24):
        answers = [f"good w{i}", f"bad w{i} w{i + 1}", f"great w{(3 * i) % 50}"][: 2 + i % 2]
        rows.append(
            {
                "id": str(i),
                "prompt": f"w{i} w{(5 * i) % 50}",
                "responses": answers,
                "scores": [1.0, -0.5, 2.0][: len(answers)],
            }
        )
    return _written({"train": rows[:16], "val": rows[16:]})


def _written(splits: Mapping[str, Any]) -> str:
    path = Path(mkdtemp(prefix="data-"))
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
