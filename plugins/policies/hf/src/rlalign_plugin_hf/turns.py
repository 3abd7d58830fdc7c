"""What an environment says between two responses, as tokens: what the chat template writes there, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rlalign import ConfigError, RLAlignError
from rlalign.data.example import Prompt
from rlalign.data.limits import TEXT_CHARACTERS
from rlalign_plugin_hf.options import where
from rlalign_plugin_hf.prompts import REMEMBERED, PromptReader

ASKED, ANSWER = "…asked…", "…answer…"
"""Stand for what was said before, which a template only hands through."""
THOUGHT = "<think>\n…thought…\n</think>\n\n"


class Turns:
    """Reads what is said to a policy in the middle of a conversation."""

    def __init__(self, reader: PromptReader, ends: Callable[[], Sequence[int]]) -> None:
        self._reader = reader
        self._ends = ends
        self._tokens: dict[tuple[str, bool, tuple[int, ...]], list[int]] = {}

    def tokens(self, say: Prompt, closed: bool) -> list[int]:
        """Those between a response and the next; `closed`: it ended with an end token."""
        if not say:
            return []
        if isinstance(say, str):
            self._require_short(say)
            return self._reader.spelling.plain(say)
        key = json.dumps(say, default=str), closed, tuple(self._ends())
        if key not in self._tokens:
            if len(self._tokens) >= REMEMBERED:
                self._tokens.clear()
            self.require_history(say)
            self._tokens[key] = self._of_messages(say, closed)
        return self._tokens[key]

    def words(self, choices: Sequence[str]) -> list[list[int]]:
        return [self._reader.spelling.plain(choice) for choice in choices]

    def require_history(self, say: Prompt) -> None:
        """Refuse a template that writes what was said before otherwise once more has been said."""
        if isinstance(say, str) or self._reader.config.template == "as-said":
            return
        for answer in (ANSWER, THOUGHT + ANSWER):
            before, after = self._rendered([], answer), self._rendered(say, answer)
            if not after.startswith(before):
                raise ConfigError(
                    f"the chat template of {where(self._reader.config)} writes an answer otherwise once it is no "
                    "longer the last one, so that no episode of several turns reads as it was played; say "
                    "`template: as-said` to go on with what was really said, or name a tokenizer with another template "
                    "(`tokenizer:`)"
                )

    def _of_messages(self, say: Any, closed: bool) -> list[int]:
        hidden, said = self._reader.spelling.hidden(say)
        _, found, after = self._rendered(hidden, ANSWER).partition(ANSWER)
        if not found:
            raise self._unfit("leaves out what the assistant has said")
        if closed:
            texts = [self._reader.tokenizer.decode([end]) for end in self._ends()]
            after = after.lstrip(" ")  # some templates write a space before the end
            end = next((text for text in texts if text and after.startswith(text)), None)
            if end is None:
                raise self._unfit(
                    f"goes on after an answer with {after[:20]!r}, which is none of the tokens that end a response "
                    f"({', '.join(map(repr, texts))})"
                )
            after = after[len(end) :]
        self._require_short(after)
        return self._reader.spelling.shown(after, said)

    def _rendered(self, say: Any, answer: str) -> str:
        """A conversation: all of it, or with more said, up to where the next answer begins."""
        talk = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": answer}]
        try:
            return self._reader.rendered([*talk, *say], answered=not say)
        except ValueError as error:
            raise self._unfit(f"cannot be used in an episode of several turns: {error}") from None

    def _unfit(self, why: str) -> RLAlignError:
        return ConfigError(
            f"the chat template of {where(self._reader.config)} {why}; mend it, or name a tokenizer that has another "
            "one (`tokenizer:`)"
        )

    def _require_short(self, text: str) -> None:
        if len(text) > TEXT_CHARACTERS:
            raise RLAlignError(
                f"an environment says {len(text):,} characters at once; the longest text that becomes tokens has "
                f"{TEXT_CHARACTERS:,}"
            )
