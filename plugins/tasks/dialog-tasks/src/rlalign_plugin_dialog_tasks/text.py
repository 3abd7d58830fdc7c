"""Cells that must hold something, and lengths in tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlalign import ConfigError
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.mapping import get
from rlalign_plugin_dataset.tables import Row, kind_of


def text_of(row: Row, name: str) -> str:
    """A column that holds text, and not only white space."""
    return filled(get(row, name), f"`{name}`")


def filled(value: Any, what: str) -> str:
    """Text that is more than white space."""
    if not isinstance(value, str):
        raise BadRow(f"{what} is {kind_of(value)}, expected text")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return value


def list_of(row: Row, name: str) -> list[Any]:
    """A column that holds a list."""
    value = get(row, name)
    if not isinstance(value, list):
        raise BadRow(f"`{name}` is {kind_of(value)}, expected a list")
    return value


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within bounds; in CSV it is written as text."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        found = None
    if found is None:
        raise BadRow(f"{what} is {kind_of(value)}, expected a number")
    if not math.isfinite(found):
        raise BadRow(f"{what} is {found}")
    if not low <= found <= high:
        raise BadRow(f"{what} is {found:g}, expected {low:g} to {high:g}")
    return found


class Tokens:
    """A tokenizer that only measures."""

    def __init__(self, source: str | Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ConfigError(
                f"`tokenizer` needs `transformers`, and it is not installed ({error}): "
                "`pip install transformers` (the extra `tokenizer` of rlalign-plugin-dialog-tasks)"
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(source))
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(f"tokenizer: {source}: cannot be loaded: {first}") from error
        if not self._tokenizer.is_fast:
            raise ConfigError(f"tokenizer: {source}: does not say where its tokens stand; name a fast one")

    def digest(self) -> str:
        """A hash of what it does."""
        return hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def count(self, text: str) -> int:
        """Tokens of a text; special ones only where they are written out."""
        return len(self._ends(text))

    def cut(self, text: str, limit: int) -> str:
        """At most this many tokens, the first ones."""
        ends = self._ends(text)
        return text if len(ends) <= limit else text[: ends[limit - 1]]

    def _ends(self, text: str) -> Sequence[int]:
        # `verbose`: a warning about texts longer than the model reads would say nothing of ours.
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [end for _, end in found["offset_mapping"]]


def fitted(text: str, tokens: Tokens | None, limit: int | None, ends: bool = True) -> tuple[str, bool]:
    """A response cut on the right after `limit` tokens, and whether its end, one token more, is still there."""
    if tokens is None or limit is None or tokens.count(text) + ends <= limit:
        return text, ends
    return tokens.cut(text, limit), False
