"""Tensors that are cut over the ranks of a run: each rank's pieces in a safetensors file of its own.

The files are those of torch's distributed checkpoints (`HuggingFaceStorageReader`), which are read piece by piece into
tensors that are whole, or cut over another number of ranks.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlalign.errors import CheckpointError
from rlalign.world.sharding import is_cut, local, offsets

ALIASES = "aliases"


def cut_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are cut."""
    return {name: x for name, x in tensors.items() if is_cut(x)}


def stripped(state: Any) -> Any:
    """A nested state with an empty tensor in the place of each that is cut."""
    if isinstance(state, Tensor):
        return torch.empty(0, dtype=state.dtype) if is_cut(state) else state
    if isinstance(state, Mapping):
        return {key: stripped(item) for key, item in state.items()}
    return type(state)(map(stripped, state)) if type(state) in (list, tuple) else state


def save_pieces(folder: Path, tensors: Mapping[str, Tensor], rank: int, count: int) -> Path:
    """Write this rank's pieces; a tensor that has several names is written once."""
    first: dict[int, str] = {}
    aliases = {name: known for name, x in tensors.items() if (known := first.setdefault(id(x), name)) != name}
    pieces = {name: local(tensors[name]).detach().cpu().contiguous() for name in first.values()}
    pieces = {name: x for name, x in pieces.items() if x.numel()}
    told = {name: {"saved_offsets": offsets(tensors[name])} for name in pieces}
    file = folder / f"shard-{rank + 1:05}-of-{count:05}.safetensors"
    metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(told), ALIASES: json.dumps(aliases)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(pieces, file, metadata)
    with file.open("rb") as written:  # by who wrote it: another machine cannot
        os.fsync(written.fileno())
    return file


def load_pieces(folder: Path, into: Mapping[str, Tensor]) -> set[str]:
    """Fill tensors, whole or cut in any way, with what all files of a folder hold of them; returns their names."""
    shapes, aliases = _listed(folder)
    if wrong := [name for name, shape in shapes.items() if name not in into or into[name].shape != shape]:
        raise CheckpointError(f"{folder}: what is here is not what is needed: {', '.join(wrong[:5])} differ")
    if shapes:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no others
            reader = HuggingFaceStorageReader(str(folder))
            load({name: into[name] for name in shapes}, storage_reader=reader, no_dist=True)
    return {*shapes, *aliases}


def _listed(folder: Path) -> tuple[dict[str, torch.Size], set[str]]:
    """The shapes of the whole tensors in a folder, and other names of them."""
    shapes: dict[str, torch.Size] = {}
    aliases: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            told = json.loads(metadata["DCP_SHARDING_INFO"])
            aliases |= json.loads(metadata[ALIASES]).keys()
            for name in file.keys():  # noqa: SIM118
                ends = [
                    start + size
                    for start, size in zip(
                        told[name]["saved_offsets"], file.get_slice(name).get_shape(), strict=True
                    )
                ]
                shapes[name] = torch.Size(map(max, ends, shapes.get(name, ends)))
    return shapes, aliases
