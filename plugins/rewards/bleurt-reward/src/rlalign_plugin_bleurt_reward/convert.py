"""The command `rlalign-bleurt`: a checkpoint rewritten once, so that a run reads safetensors and small files."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import click
from safetensors.torch import save_file

from rlalign import RLAlignError
from rlalign_plugin_bleurt_reward.checkpoint import Checkpoint


def convert(checkpoint: Checkpoint, out: Path) -> None:
    """Write a checkpoint into a new folder, in the layout of the ports. The folder is there whole or not at all."""
    weights, sizes = checkpoint.weights(), checkpoint.sizes
    checkpoint.tokenizer()  # refuses one that does not fit
    if out.exists():
        raise RLAlignError(f"{out}: exists already; name a new folder")
    embedding = weights["embeddings.word_embeddings.weight"].shape[1]
    config = {
        "architectures": ["BleurtForSequenceClassification"],
        "model_type": "bleurt",
        "name": checkpoint.name,
        "vocab_size": sizes.vocabulary,
        "embedding_size": None if embedding == sizes.hidden else embedding,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "hidden_act": "gelu_new" if checkpoint.gelu == "tanh" else "gelu",
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.types,
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "torch_dtype": "float32",
    }
    tokenizer = {"do_lower_case": checkpoint.lower, "model_max_length": checkpoint.max_length}
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        named = {
            name if name.startswith("classifier.") else f"bleurt.{name}": x for name, x in weights.items()
        }
        save_file(named, made / "model.safetensors", metadata={"format": "pt"})
        for name, said in (("config.json", config), ("tokenizer_config.json", tokenizer)):
            (made / name).write_text(json.dumps(said, indent=1) + "\n")
        if checkpoint.vocabulary.suffix == ".model":
            shutil.copyfile(checkpoint.vocabulary, made / "spm.model")
        else:
            kind = "tokenizer.json" if checkpoint.vocabulary.suffix == ".json" else "vocab.txt"
            shutil.copyfile(checkpoint.vocabulary, made / kind)
        made.chmod(0o777 & ~_umask())
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@click.group()
def program() -> None:
    """Checkpoints of BLEURT."""


@program.command("convert")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
def convert_command(source: str, out: Path) -> None:
    """Rewrite the checkpoint SOURCE (a folder, or a name in the hub's cache) into the new folder OUT.

    Pickled weights (pytorch_model.bin) are read by torch in a way that runs no code of theirs.
    """
    from rlalign_plugin_bleurt_reward import open_checkpoint

    checkpoint = open_checkpoint(source, pickled=True)
    convert(checkpoint, out)
    again = open_checkpoint(out)
    click.echo(
        f"{out}: {again.name}, gelu {again.gelu}, up to {again.max_length} tokens, sha256 {again.digest}"
    )


def main() -> None:
    """The command; what somebody can fix is said without a traceback."""
    try:
        program()
    except RLAlignError as error:
        click.echo(f"rlalign-bleurt: {error}", err=True)
        sys.exit(error.exit_code)
