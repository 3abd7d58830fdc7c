"""Control tokens that somebody's text spells are text: a tokenizer, a chat template and a pipeline write real ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from threading import Lock
from typing import Any

_MARK = "\ue000{}\ue001"
_MARKED = re.compile("\ue000(\\d+)\ue001")


class Spelling:
    """A tokenizer's control tokens, as texts may spell them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._one_at_a_time = Lock()
        added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        words = {**added, **named}
        self.tokens = frozenset(words.values()) - {tokenizer.unk_token_id}
        longest_first = sorted(filter(None, words), key=len, reverse=True)
        self._spelt = re.compile("|".join([*map(re.escape, longest_first), _MARKED.pattern]))

    def found(self, text: str) -> bool:
        """Whether a text spells any."""
        return self._spelt.search(text) is not None

    def plain(self, text: str) -> list[int]:
        """The tokens of a text and nothing else; a control token spelt in it is ordinary text."""
        unknown = self._tokenizer.unk_token_id
        # A vocabulary of whole words knows them all the same.
        known = (unknown if token in self.tokens else token for token in self._read(text, split=True))
        return [token for token in known if token is not None]

    def trusted(self, text: str) -> list[int]:
        """The tokens of what a pipeline or a template wrote: control tokens are such."""
        return self._read(text, split=False)

    def hidden(self, messages: Any) -> tuple[Any, tuple[str, ...]]:
        """Messages in which marks stand for what spells control tokens, and what they stand for."""
        said: list[str] = []

        def mark(found: re.Match[str]) -> str:
            said.append(found[0])
            return _MARK.format(len(said) - 1)

        def hide(value: Any) -> Any:
            if isinstance(value, str):
                return self._spelt.sub(mark, value)
            if isinstance(value, dict):
                return {key: hide(part) for key, part in value.items()}
            return [hide(part) for part in value] if isinstance(value, list | tuple) else value

        return hide(messages), tuple(said)

    def shown(self, text: str, said: Sequence[str]) -> list[int]:
        """The tokens of what a template made of such messages."""
        pieces = enumerate(_MARKED.split(text))
        return [
            token
            for place, piece in pieces
            for token in (self.plain(said[int(piece)]) if place % 2 else self.trusted(piece))
        ]

    def _read(self, text: str, *, split: bool) -> list[int]:
        with self._one_at_a_time:  # a tokenizer is told for all threads whether it splits
            ids: list[int] = self._tokenizer(
                text, add_special_tokens=False, split_special_tokens=split, verbose=False
            )["input_ids"]
        return ids
