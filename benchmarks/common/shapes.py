"""Models of real shapes with random weights, and prompts of a given number of tokens: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("gpt2", {"n_layer": 2, "n_embd": 128, "n_head": 2, "vocab_size": 1000}),
    "qwen": (
        "qwen2",
        {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "vocab_size": 8000, "tie_word_embeddings": False},
    ),
    "t5": (
        "t5",
        {"num_layers": 2, "d_model": 128, "d_kv": 64, "d_ff": 512, "num_heads": 2, "vocab_size": 1000}
        | {"decoder_start_token_id": 2, "dropout_rate": 0.0},
    ),
    "gpt2": ("gpt2", {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}),
    "qwen-0.5b": (
        "qwen2",
        {"num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 4096},
    ),
    "qwen-1.5b": (
        "qwen2",
        {"num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 4096},
    ),
    "qwen-7b": (
        "qwen2",
        {"num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 4096}
        | {"tie_word_embeddings": False},
    ),
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
BEGIN, END, PAD = range(3)
FIRST = 3
"""The first token that is an ordinary word."""
COMMON = (
    "the of and to in is was for on that with as it by at from his her are be this had not but have an they "
    "which one you were all their there been many some so will would each about how up out them then she other "
    "into has more two like him time see no could make than first water people over such after where most know"
)
"""Words that are one token each in most vocabularies of English."""


def config_of(shape: str) -> Any:
    from transformers import AutoConfig

    kind, size = SHAPES[shape]
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    named = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
    return AutoConfig.for_model(kind, **{"tie_word_embeddings": True, **still, **size, **named})


def write_tokenizer(folder: Path, size: int) -> None:
    """A token a numbered word, after those that begin, end and pad."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIAL.values(), *(f"w{i}" for i in range(FIRST, size))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL).save_pretrained(folder)


def tokenizer_of(folder: Path) -> Path:
    """The folder of a model's tokenizer.

    Ours stand apart: with a config.json beside it, transformers would take the tokenizer of that family.
    """
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def lay(shape: str, root: Path, *, ends_after: float | None = None) -> Path:
    """A model folder with random weights; with `ends_after`, responses of geometric lengths with this mean."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    folder = root / (shape if ends_after is None else f"{shape}-ends")
    if (folder / "tokenizer").exists():
        return folder
    config = config_of(shape)
    torch.manual_seed(0)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    network = auto.from_config(config)
    if ends_after is not None:
        end_after(network, ends_after)
    network.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer", config.vocab_size)
    return folder


@torch.no_grad()
def end_after(network: Any, mean: float) -> None:
    """Give the end token probability 1/mean whatever came before: all states share one direction, and it reads that."""
    network.get_input_embeddings().weight[:, 0] += 1.0
    head = network.get_output_embeddings().weight
    if head is not network.get_input_embeddings().weight:
        head[:, 0] = 0.0
    head[END, 1:] = 0.0
    ids = torch.randint(FIRST, len(head), (8, 16), generator=torch.Generator().manual_seed(1))
    wanted = torch.tensor(1 / mean)
    for _ in range(8):  # the row of a tied end token is moved a little by what it moves
        state = network.base_model(input_ids=ids).last_hidden_state
        found = network(input_ids=ids).logits.softmax(-1)[..., END].mean()
        head[END, 0] += (wanted.logit() - found.logit()) / state[..., 0].mean()


def prompts(folder: Path, count: int, tokens: int) -> list[str]:
    """Different prompts of exactly so many tokens of the model's own tokenizer."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_of(folder))
    if tokenizer.get_vocab().get("w5") == 5:  # ours
        words = [f"w{i}" for i in range(FIRST, 900)]
    else:
        words = [w for w in COMMON.split() if len(tokenizer(f"the {w} the")["input_ids"]) == 3]
    made = []
    for i in range(count):
        first, apart = 7 * i + i // 10, 1 + i % 5
        made.append(" ".join(words[(first + j * apart) % len(words)] for j in range(tokens)))
    wrong = next((x for x in made if len(tokenizer(x)["input_ids"]) != tokens), None)
    if wrong is not None:
        raise SystemExit(f"{folder}: `{wrong}` is not {tokens} tokens")
    return made
