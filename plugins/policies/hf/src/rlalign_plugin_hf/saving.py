"""A policy as an ordinary folder: its network with adapters merged, its tokenizer, in the precision of its base."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

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


def _let_be_written(generation: Any) -> None:
    """Mend a temperature without `do_sample`, as some hub models have: it may be read, but not written."""
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
