"""What lies on the disk where a model should be: whether it is one, found out without loading it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rlalign import RLAlignError
from rlalign.data.limits import require_file
from rlalign_plugin_hf import gguf, hub

TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
LARGEST_JSON = 2**28
"""Bytes of a JSON file in a model's folder."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def local(source: str) -> str:
    """A config file stands for its folder."""
    return str(Path(source).parent) if source.endswith("config.json") else source


def check_folder(source: str, option: str) -> None:
    """Refuse what is no model's folder, GGUF file, or name on the hub that can be had."""
    if said := lacking(source):
        raise RLAlignError(f"{option}: {said}")
    if gguf.named(source):
        gguf.require(source)
        return
    if not Path(local(source)).is_dir():
        hub.require(source)
    elif option == "path":
        _require_model(Path(local(source)))
    for file in Path(local(source)).glob("*.json"):
        require_file(file, LARGEST_JSON)


def _require_model(folder: Path) -> None:
    """Refuse a folder without a model's configuration, saying all that is missing."""
    if (folder / "config.json").exists():
        return
    missing = ["config.json"]
    if not any(folder.glob("*.safetensors")):
        missing.append("weights (*.safetensors)")
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        missing.append("a tokenizer (tokenizer.json)")
    files = sorted(file.name for file in folder.iterdir())
    holds = f"it holds {', '.join(files[:5])}{' …' if len(files) > 5 else ''}" if files else "it is empty"
    raise RLAlignError(
        f"{folder}: is no model's folder: {holds}, and lacks {_listed(missing)}; give the folder that "
        "`save_pretrained` wrote, or the `model` folder of a run"
    )


def _listed(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def lacking(source: str) -> str | None:
    """What is wrong with a path to nothing; a name on the hub cannot be known here."""
    if gguf.named(source):
        return None if Path(source).exists() else f"{source}: there is no such file"
    folder = Path(local(source))
    if folder.is_dir():
        return None
    if folder.is_absolute() or source.startswith((".", "~")):
        return f"{source}: there is no such folder; give a model's folder, or a model's name on the hub"
    if "/" in source and folder.parent.is_dir():
        return (
            f"{source}: there is no such folder in {folder.parent.absolute()}; for a model of that name on the hub, "
            f"work where no folder is called `{folder.parts[0]}`"
        )
    return None


def check_weights(source: str) -> None:
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(source) is not None:
        # transformers would load it by itself, from a pickle if need be.
        raise RLAlignError(
            f"{source}: holds an adapter (adapter_config.json); merge it into its model and give that folder"
        )
    folder = Path(source)
    pickled = sorted(_pickled_shards(folder))
    if not folder.is_dir() or (any(folder.glob("*.safetensors")) and not pickled):
        return
    pickled += sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise RLAlignError(
            f"{source}: its weights are pickled ({pickled[0]}), and unpickling runs whatever code a file holds. "
            "Convert them to safetensors first: load the model once with transformers and `save_pretrained` it"
        )
    raise RLAlignError(
        f"{source}: holds no weights (no *.safetensors file). `init: random` makes random ones from its config.json"
    )


def _pickled_shards(folder: Path) -> Iterator[str]:
    """Files that a list of safetensors names, and that are none."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = json.loads(index.read_text("utf-8"))["weight_map"].values()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise RLAlignError(f"{index}: cannot be read as a list of weights") from None
        yield from {str(file) for file in named if not str(file).endswith(".safetensors")}
