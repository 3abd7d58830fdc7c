"""Lengths in tokens, and texts cut to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlalign import ConfigError

Side = Literal["left", "right"]


class Tokens:
    """A tokenizer that only measures."""

    def __init__(self, source: str | Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ConfigError(
                f"`tokenizer` needs `transformers`, and it is not installed ({error}): "
                "`pip install transformers` (the extra `tokenizer` of rlalign-plugin-dataset)"
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(source))
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"tokenizer: {source}: cannot be loaded: {first} "
                "Without the hub, name the folder of a tokenizer or model that is here"
            ) from error
        if not self._tokenizer.is_fast:
            raise ConfigError(f"tokenizer: {source}: does not say where its tokens stand; name a fast one")

    def digest(self) -> str:
        """A hash of what it does."""
        return hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def count(self, text: str) -> int:
        """Tokens of a text; special ones only where they are written out."""
        return len(self._places(text))

    @cached_property
    def around(self) -> int:
        """How many tokens are put around every text."""
        return len(self._tokenizer("")["input_ids"])

    def cut(self, text: str, limit: int, side: Side = "right") -> str:
        """At most this many tokens: the first ones, or, cut on the left, the last ones."""
        if limit <= 0:
            return ""
        # Where a cut falls within a word, what is left of it may become more tokens than it was.
        while len(places := self._places(text)) > limit:
            if side == "right":  # a character may be several tokens, all of which end where it does
                text = text[: min(places[limit - 1][1], places[limit][0], len(text) - 1)]
            else:
                text = text[max(places[-limit - 1][1], 1) :]
        return text

    def _places(self, text: str) -> Sequence[tuple[int, int]]:
        """Where each token begins and ends."""
        # `verbose`: a warning about texts longer than the model reads would say nothing of ours.
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places: Sequence[tuple[int, int]] = found["offset_mapping"]
        return places


def fitted(text: str, tokens: Tokens | None, limit: int | None, ends: bool = True) -> tuple[str, bool]:
    """A response cut on the right after `limit` tokens, and whether its end, one token more, is still there."""
    if tokens is None or limit is None or tokens.count(text) + ends <= limit:
        return text, ends
    return tokens.cut(text, limit), False
