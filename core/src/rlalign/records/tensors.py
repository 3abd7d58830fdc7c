"""Tensors on the disk, and states that hold some: nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlalign import nested
from rlalign.data.limits import machine_memory, require_file
from rlalign.errors import RLAlignError
from rlalign.records.files import StrPath

_PLAIN = {type(None), bool, int, float, str, list, tuple}
STORABLE = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def save_tensors(path: StrPath, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any layout and device; one that has several names is written once."""
    written: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[object, str] = {}
    storages = set()
    for name, given in tensors.items():
        unfit = _unfit(given)
        if unfit:
            raise RLAlignError(
                f"{path}: {name!r} cannot be stored: it is {unfit}. Make it a dense tensor of booleans, "
                "integers or real numbers."
            )
        same = (given.device, given.data_ptr(), given.dtype, given.shape, given.stride())
        if given.numel() and (first := names.setdefault(same, name)) != name:
            aliases[name] = first
            continue
        tensor = given.detach().cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()  # safetensors refuses different views of one storage
        storages.add(tensor.untyped_storage().data_ptr())
        written[name] = tensor
    save_file(written, path, metadata={"aliases": json.dumps(aliases)} if aliases else None)


def load_tensors(path: StrPath) -> dict[str, Tensor]:
    """What `save_tensors` wrote. Names of one tensor are names of one tensor again."""
    require_file(Path(path), machine_memory())
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    return tensors | {name: tensors[first] for name, first in aliases.items()}


def split_state(state: Any, where: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Take the tensors out of a nested state; the rest becomes JSON, from which `nested.join` restores it.

    Mappings come back as dicts; other subclasses are refused rather than flattened.
    """

    def plain(part: Any, path: tuple[object, ...]) -> None:
        if isinstance(part, Mapping):
            for key in part:
                if type(key) not in (str, int):
                    raise RLAlignError(_unsuitable(where, path, f"the key {key!r} ({_type(key)})"))
        elif not (isinstance(part, Tensor) or type(part) in _PLAIN):
            raise RLAlignError(_unsuitable(where, path, _type(part)))

    return nested.split(state, plain)


def can_be_stored(x: Tensor) -> bool:
    """Whether a file can hold it."""
    return x.dtype in STORABLE and x.layout == torch.strided and not x.is_meta


def _unfit(value: object) -> str | None:
    """Why a value is no tensor that a file can hold; None if it is one."""
    if not isinstance(value, Tensor):
        return _type(value)
    if not can_be_stored(value):
        return f"a tensor of {value.dtype}, {value.layout}, on {value.device}"
    return None


def _unsuitable(where: str, path: tuple[object, ...], found: str) -> str:
    return (
        f"{'/'.join(map(str, (where, *path)))}: {found} cannot be part of a checkpoint. A state is made of "
        "tensors, None, bool, int, float and str, in dicts (keys str or int), lists and tuples."
    )


def _type(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
