"""The precision a model's files are in. Whatever it is trained in, it is written in that precision again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

KINDS = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Half:
    """The precision of a model whose files hold most weights in half."""

    dtype: torch.dtype
    full: frozenset[str] = frozenset()
    """The tensors that the files hold otherwise."""

    def holds(self, network: Any) -> bool:
        """Whether no weight is too large for it."""
        most = torch.finfo(self.dtype).max
        return not any(
            bool((tensor.abs() > most).any())
            for name, tensor in network.state_dict().items()
            if tensor.is_floating_point() and name not in self.full
        )

    @contextmanager
    def put_on(self, network: Any) -> Iterator[None]:
        """The network in this precision, each weight rounded to the nearest; afterwards it is as it was, to the bit."""
        before = {}
        try:
            for name, tensor in network.state_dict(keep_vars=True).items():
                if tensor.is_floating_point() and name not in self.full and id(tensor) not in before:
                    before[id(tensor)] = tensor, tensor.data
                    tensor.data = tensor.data.to(self.dtype)
            yield
        finally:
            for tensor, data in before.values():
                tensor.data = data


def to_write(
    network: Any, files: Half | None, float32: bool, adapters: bool
) -> tuple[Half | None, str | None]:
    """What to put on a network before it is saved, and what its card then says; `files` are those of its base."""
    held = network.get_input_embeddings().weight.dtype
    if held == torch.bfloat16:
        if float32:
            return Half(
                torch.float32
            ), "The weights are float32, as was asked. They were trained in bfloat16."
        return None, (
            "The weights are bfloat16, as the run held them (`train.weights`): what it measured it measured of these. "
            "The float32 masters that its optimiser moved are in the run's checkpoints."
        )
    if files is None:
        return None, None
    name = str(files.dtype).removeprefix("torch.")
    if float32 or not files.holds(network):
        why = "as was asked" if float32 else f"some are too large for {name}"
        return None, f"The weights are float32: {why}. The base model's files are {name}."
    return files, (
        f"The weights are {name}, as those of the base model are. They were trained in float32 and rounded to the "
        "nearest when they were written, so what is measured of this folder may differ a little from what the run "
        f"measured, and the smallest changes of weights are lost. {'The adapters' if adapters else 'They'} are in "
        "float32 in the run's checkpoints."
    )


def half_of(source: str) -> Half | None:
    """What a model's files, of a folder or in the hub's cache, hold most weights in; None where that is not half."""
    numbers: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    for path in _files(source):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                kinds[name] = part.get_dtype()
                numbers[kinds[name]] += torch.Size(part.get_shape()).numel()
    ((most, _),) = numbers.most_common(1) or [("", 0)]
    if most not in KINDS:
        return None
    return Half(KINDS[most], frozenset(name for name, kind in kinds.items() if kind != most))


def _files(source: str) -> Iterator[Path]:
    """The weights that transformers has just loaded."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    def there(name: str) -> Path | None:
        found = cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    if (whole := there(SAFE_WEIGHTS_NAME)) is not None:
        yield whole
    elif (index := there(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())):
            if (shard := there(name)) is not None:
                yield shard
