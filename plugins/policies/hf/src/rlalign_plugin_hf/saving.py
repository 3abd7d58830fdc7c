"""A policy as an ordinary folder: its network with adapters merged, its tokenizer, in the precision of its base."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlalign_plugin_hf import adapter
from rlalign_plugin_hf.loading import quiet
from rlalign_plugin_hf.precision import Half, to_write

LOADING = """from transformers import AutoTokenizer, {0}

tokenizer = AutoTokenizer.from_pretrained(here)
model = {0}.from_pretrained(here)
given = tokenizer("A prompt", return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**given, max_new_tokens=20), skip_special_tokens=True)[0])"""
"""How what is saved is loaded by transformers alone, by the class that does."""


def save(
    folder: Path, network: Any, tokenizer: Any, files: Half | None, adapters: bool, float32: bool
) -> str | None:
    """Write it; returns what its card should add. `files` is the precision of its base's files, where that is half."""
    if adapters:
        network = adapter.merged(network)
    _let_be_written(getattr(network, "generation_config", None))
    written, told = to_write(network, files, float32, adapters)
    with quiet(), written.put_on(network) if written else nullcontext():
        network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return told


def tensors(network: Any, files: Half | None, float32: bool) -> dict[str, tuple[Tensor, torch.dtype]]:
    """What `save` writes of a network without adapters, by name: where it lies, and its precision there."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    written, _ = to_write(network, files, float32, adapters=False)
    left_out = set(network._keys_to_ignore_on_save or ())
    state = {name: tensor for name, tensor in network.state_dict().items() if name not in left_out}
    state = revert_weight_conversion(network, remove_tied_weights_from_state_dict(state, network))

    def dtype(name: str, tensor: Tensor) -> torch.dtype:
        rounded = written is not None and tensor.is_floating_point() and name not in written.full
        return written.dtype if written is not None and rounded else tensor.dtype

    return {name: (tensor, dtype(name, tensor)) for name, tensor in state.items()}


def _let_be_written(generation: Any) -> None:
    """Mend a temperature without `do_sample`, as some hub models have: it may be read, but not written."""
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
