"""Reads the weights of a checkpoint, and refuses all that are not exactly those of the model its configuration says.

The names used here are those that transformers gives to BERT's weights. Ports hold them behind a prefix; official
checkpoints have names of their own, and dense layers the other way round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rlalign.data.limits import require_memory
from rlalign_plugin_bleurt_reward.bundle import Bundle, CheckpointError
from rlalign_plugin_bleurt_reward.model import Sizes

NO_WEIGHTS = re.compile(r"global_step|.*(/|^)adam_.*|beta[12]_power")
"""Variables of an official checkpoint that are none of the model's."""


def of_official(index: Path, sizes: Sizes) -> dict[str, Tensor]:
    """The weights that an index of TensorFlow's and the files beside it hold."""
    bundle = Bundle(index.with_suffix(""))
    if tracked := next((name for name in bundle.entries if "/.ATTRIBUTES/" in name), None):
        raise CheckpointError(
            f"{index}: was written by tf.train.Checkpoint (`{tracked}`); BLEURT's checkpoints name their variables "
            "`bert/…`"
        )
    names: dict[str, str] = {}
    for theirs in bundle.entries:
        if NO_WEIGHTS.fullmatch(theirs):
            continue
        if (ours := canonical(theirs)) in names:
            raise CheckpointError(f"{index}: `{theirs}` and `{names[ours]}` are the same weight")
        names[ours] = theirs
    turned = {ours for ours, theirs in names.items() if theirs.endswith("/kernel")}
    shapes = {ours: bundle.entries[theirs].shape for ours, theirs in names.items()}
    require(index, sizes, {name: shape[::-1] if name in turned else shape for name, shape in shapes.items()})
    found = {}
    for ours, theirs in names.items():
        tensor = bundle.tensor(theirs)
        found[ours] = _checked(index, theirs, tensor.t() if ours in turned else tensor).float().contiguous()
    return found


def of_port(path: Path, sizes: Sizes) -> dict[str, Tensor]:
    """The weights in a `.safetensors`, or in a `.bin` that torch reads without running what it holds."""
    try:
        if path.suffix == ".bin":
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            loaded = load_file(path)
    except Exception as error:  # each reader has its own
        lines = str(error).strip().splitlines() or ["no message"]
        raise CheckpointError(f"{path}: cannot be read: {type(error).__name__}: {lines[0][:200]}") from None
    if not isinstance(loaded, dict) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise CheckpointError(f"{path}: holds something else than tensors by name")
    tensors: dict[str, Tensor] = {}
    for theirs, tensor in loaded.items():
        ours = re.sub(r"^(bert|bleurt|rembert)\.", "", str(theirs))
        ours = ours.replace("encoder.embedding_hidden_mapping_in.", "encoder.embedding_projection.")
        if ours in tensors:
            raise CheckpointError(f"{path}: holds `{ours}` twice, once as `{theirs}`")
        if ours != "embeddings.position_ids":
            tensors[ours] = tensor
    del loaded
    require(path, sizes, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    # Copied, so that a file that changes later changes nothing; one by one, so that there are never two of all.
    return {
        name: _checked(path, name, tensors.pop(name)).to(torch.float32, copy=True).contiguous()
        for name in list(tensors)
    }


def canonical(name: str) -> str:
    """What a variable of an official checkpoint is called here."""
    name = re.sub(r"^bert/encoder/embedding_hidden_mapping_in/", "encoder/embedding_projection/", name)
    name = re.sub(r"^dense/(?=kernel$|bias$)", "classifier/", name)
    name = re.sub(r"^bert/(?=(embeddings|encoder|pooler)/)", "", name)
    name, count = re.subn(r"/(kernel|gamma)$|(?<=_embeddings)$", ".weight", name)
    name, more = re.subn(r"/(beta|bias)$", ".bias", name)
    if not count + more:
        return name
    return re.sub(r"/layer_(?=\d+/)", "/layer.", name).replace("/", ".")


def require(path: Path, sizes: Sizes, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are missing, left over or of another shape than the configuration says."""
    words = shapes.get("embeddings.word_embeddings.weight", ())
    expected = sizes.shapes(words[1] if len(words) == 2 else sizes.hidden)
    if missing := [name for name in expected if name not in shapes]:
        raise CheckpointError(
            f"{path}: {len(missing)} of the model's {len(expected)} weights are missing, the first `{missing[0]}`"
        )
    if strange := [name for name in shapes if name not in expected]:
        inserted = any(re.fullmatch(r"dense_\d+\.(weight|bias)", name) for name in strange)
        hint = "; layers between encoder and score are not supported" if inserted else ""
        raise CheckpointError(f"{path}: holds weights that BLEURT has not, the first `{strange[0]}`{hint}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{path}: `{name}` is of shape {list(shapes[name])}; by its configuration it is {list(shape)}"
            )
    most = 4 * sum(map(math.prod, expected.values()))
    require_memory(f"{path}: the model", most, remedy="take a smaller checkpoint")


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
        raise CheckpointError(
            f"{path}: `{name}` is of {tensor.dtype}, {tensor.layout}; weights are dense and floating-point"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{path}: `{name}` holds numbers that are none: NaN, or infinite")
    return tensor.detach()
