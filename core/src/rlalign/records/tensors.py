"""Tensors on the disk, and states of nested dicts that hold some: nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlalign.data.limits import machine_memory, require_file
from rlalign.errors import RLAlignError
from rlalign.records.files import StrPath

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


def split_state(nested: Any, where: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Take the tensors out of a nested state; the rest becomes JSON, from which `join_state` restores it.

    An object in that JSON has one key, which names what it stands for: {"tensor": name},
    {"dict": {…}}, {"items": [[key, value], …]} (a dict with other than string keys), {"tuple": […]},
    {"float": "inf"}. Mappings come back as dicts; other subclasses are refused rather than flattened.
    """
    tensors: dict[str, Tensor] = {}

    def split(value: Any, path: tuple[object, ...]) -> Any:
        if isinstance(value, Tensor):
            name = "/".join(map(str, path)) or "tensor"
            while name in tensors or name == "__metadata__":
                name += "'"  # {0: …, "0": …}
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            for key in value:
                if type(key) not in (str, int):
                    raise RLAlignError(_unsuitable(where, path, f"the key {key!r} ({_type(key)})"))
            items = [(key, split(item, (*path, key))) for key, item in value.items()]
            if all(isinstance(key, str) for key, _ in items):
                return {"dict": dict(items)}
            return {"items": [list(item) for item in items]}
        if type(value) in (list, tuple):
            entries = [split(item, (*path, i)) for i, item in enumerate(value)]
            return entries if type(value) is list else {"tuple": entries}
        if type(value) is float and value - value != 0:
            return {"float": str(value)}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise RLAlignError(_unsuitable(where, path, _type(value)))

    tree = split(nested, ())
    return tensors, tree


def join_state(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The state that `split_state` took apart."""
    if isinstance(tree, list):
        return [join_state(tensors, entry) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(join_state(tensors, entry) for entry in content)
    items = content.items() if kind == "dict" else content
    return {key: join_state(tensors, value) for key, value in items}


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
