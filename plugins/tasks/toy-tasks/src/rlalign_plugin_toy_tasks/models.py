"""How the model folders of this package are made.

    python -m rlalign_plugin_toy_tasks.models lay    configurations and tokenizers
    rlalign run examples/models/train-toy-reviews.yaml    weights, in runs/train-toy-reviews/model
    python -m rlalign_plugin_toy_tasks.models pack runs/train-toy-reviews/model toy-reviews    into the package

Weights are packed as float16. On one thread (OMP_NUM_THREADS=1) and the same machine as `made.json` names
they come out the same to the bit. The other worlds' models are made likewise.

Nothing here is needed to use them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlalign_plugin_toy_tasks.dialogue import INTENTS, REPLIES
from rlalign_plugin_toy_tasks.keywords import KEYWORDS
from rlalign_plugin_toy_tasks.questions import ANSWERS, ASKING
from rlalign_plugin_toy_tasks.reviews import REVIEWS
from rlalign_plugin_toy_tasks.summaries import STORIES, SUMMARIES
from rlalign_plugin_toy_tasks.translation import ENGLISH, TRANSLATIONS

FOLDER = Path(__file__).parent / "models"
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS = 0, 1, 2

_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "dtype": "float32",
}
_T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "d_model": 96,
    "d_kv": 24,
    "d_ff": 320,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 32,
    "dropout_rate": 0.0,
    "decoder_start_token_id": PAD,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "dtype": "float32",
}

_SMALL_T5 = {**_T5, "d_model": 64, "d_kv": 16, "d_ff": 192}


def vocabulary(words: Sequence[str]) -> dict[str, int]:
    """Words and special tokens, numbered."""
    return {word: i for i, word in enumerate([*SPECIALS, *words])}


def tokenizer(words: Sequence[str], *, letters: bool = False) -> dict[str, Any]:
    """`tokenizer.json`: a token a word or, with `letters`, a character."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(i, text) for i, text in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
        if letters
        else {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": {"type": "Fuse"} if letters else None,
        "model": {"type": "WordLevel", "vocab": vocabulary(words), "unk_token": "<unk>"},
    }


def _special(id: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": text, **flags, "special": True}


def _tokenizer_config(positions: int) -> dict[str, Any]:
    named = {f"{text[1:-1]}_token": text for text in SPECIALS}
    # Decoding must not draw full stops to the word before.
    shape = {"clean_up_tokenization_spaces": False, "model_max_length": positions}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **named, **shape}


def folders() -> dict[str, dict[str, Mapping[str, Any]]]:
    """Every model folder's files but for the weights: name → file → content."""
    letters = ["-", " ", *"0123456789"]
    shapes: dict[str, tuple[Sequence[str], bool, dict[str, Any], int]] = {
        "toy-digits": (letters, True, {**_GPT2, "n_embd": 64}, 32),
        "toy-reviews": (REVIEWS.words, False, {**_GPT2, "n_embd": 128}, 32),
        "toy-keywords": (KEYWORDS.words, False, _T5, 32),
        "toy-summaries": (_all(STORIES.words, SUMMARIES.words), False, _SMALL_T5, 48),
        "toy-questions": (_all(ANSWERS.words, ASKING), False, _SMALL_T5, 48),
        "toy-translation": (_all(ENGLISH, TRANSLATIONS.words), False, _SMALL_T5, 32),
        "toy-dialogue": (_all(REPLIES.words, INTENTS, "[]"), False, {**_GPT2, "n_embd": 96}, 48),
    }
    made: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, (words, by_letter, config, positions) in shapes.items():
        limit = {"n_positions": positions} if config["model_type"] == "gpt2" else {}
        made[name] = {
            "config.json": {**config, **limit, "vocab_size": len(vocabulary(words))},
            "tokenizer.json": tokenizer(words, letters=by_letter),
            "tokenizer_config.json": _tokenizer_config(positions),
        }
    return made


def _all(*languages: Iterable[str]) -> list[str]:
    return sorted({word for words in languages for word in words})


def lay(root: Path = FOLDER) -> None:
    """Write the folders, weights apart."""
    for name, files in folders().items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (root / name / file).write_text(json.dumps(content, indent=1) + "\n")


def pack(source: Path, target: Path) -> str:
    """Copy a trained model's weights as float16; the SHA-256 of the file."""
    from safetensors.torch import load_file, save

    weights = {
        key: x.half().contiguous() for key, x in sorted(load_file(source / "model.safetensors").items())
    }
    data = save(weights, metadata={"format": "pt"})
    (target / "model.safetensors").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def machine() -> dict[str, str]:
    """What the bits of a training run depend on beside the pipeline; one thread is taken for granted."""
    import torch

    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlalign_plugin_toy_tasks.models")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lay", help="write configurations and tokenizers")
    packing = commands.add_parser("pack", help="take over trained weights")
    packing.add_argument("source", type=Path, help="a run's `model` folder")
    packing.add_argument("name", choices=[n for n in folders() if n != "toy-digits"])
    arguments = parser.parse_args()
    if arguments.command == "lay":
        lay()
        return
    target = FOLDER / arguments.name
    made = {"sha256": pack(arguments.source, target), **machine()}
    (target / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
