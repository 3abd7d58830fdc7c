"""Which tokens end a response."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rlalign import RLAlignError
from rlalign_plugin_hf import gguf
from rlalign_plugin_hf.folders import local
from rlalign_plugin_hf.options import ModelOptions, where

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel


def ends_of(policy: LanguageModel) -> tuple[tuple[int, ...], int]:
    """(all that end a response, the one that ends a logged one): as its generation config and tokenizer say."""
    network, own = policy.network, policy.tokenizer.eos_token_id
    ends = _named(getattr(network, "generation_config", None))
    if ends is None:
        ends = _named(network.config) or []
    if own is not None and own not in ends and (not ends or policy.config.tokenizer is not None):
        ends.append(own)
    ends = [end for end in ends if isinstance(end, int) and 0 <= end < policy.vocabulary]
    if not ends:
        raise RLAlignError(
            f"{where(policy.config)}: no token ends a response: neither the model's generation config nor the "
            "tokenizer names an `eos_token` within the vocabulary; add one to the tokenizer"
        )
    return tuple(ends), own if own in ends else ends[0]


def ends_in_files(options: ModelOptions, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """All that may end a response, as far as files tell before there are weights."""
    from transformers import GenerationConfig

    said, source = [config, tokenizer], local(where(options))
    if not gguf.named(source):
        with suppress(OSError):  # not every model has one
            said.insert(0, GenerationConfig.from_pretrained(source))
    return tuple(dict.fromkeys(end for one in said for end in _named(one) or ()))


def _named(said: Any) -> list[int] | None:
    """The tokens that a configuration or a tokenizer names."""
    found = getattr(said, "eos_token_id", None)
    if found is None:
        return None
    return list(found) if isinstance(found, list | tuple) else [int(found)]
