"""Which tokens end a response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlalign import RLAlignError
from rlalign_plugin_hf.options import where

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel


def ends_of(policy: LanguageModel) -> tuple[tuple[int, ...], int]:
    """(all that end a response, the one that ends a logged one): as its generation config and tokenizer say."""
    network, own = policy.network, policy.tokenizer.eos_token_id
    found = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    if found is None:
        found = getattr(network.config, "eos_token_id", None)
    ends = list(found) if isinstance(found, list | tuple) else [] if found is None else [int(found)]
    if own is not None and own not in ends and (not ends or policy.config.tokenizer is not None):
        ends.append(own)
    ends = [end for end in ends if isinstance(end, int) and 0 <= end < policy.vocabulary]
    if not ends:
        raise RLAlignError(
            f"{where(policy.config)}: no token ends a response: neither the model's generation config nor the "
            "tokenizer names an `eos_token` within the vocabulary; add one to the tokenizer"
        )
    return tuple(ends), own if own in ends else ends[0]
