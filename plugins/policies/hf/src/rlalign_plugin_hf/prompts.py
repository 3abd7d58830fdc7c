"""Prompts as tokens: a chat's template, and what becomes of one that is empty or too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign import ConfigError, Example, LazyExamples, RLAlignError
from rlalign.data.limits import TEXT_CHARACTERS
from rlalign_plugin_hf.loading import ModelOptions, where
from rlalign_plugin_hf.rendering import ChatTemplate

REMEMBERED = 100_000
"""Prompts whose tokens are kept."""


def require_short(example: Example, text: str) -> None:
    """Refuse text that is too long for a tokenizer, which would fill the memory."""
    if len(text) > TEXT_CHARACTERS:
        raise ConfigError(
            f"example `{example.id}`: a text of {len(text):,} characters; the longest that becomes tokens has "
            f"{TEXT_CHARACTERS:,}: cut it, or leave the row out"
        )


class PromptReader:
    """Reads prompts with a tokenizer, within `max_prompt_tokens`."""

    def __init__(self, tokenizer: Any, config: ModelOptions) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._tokens: dict[str, list[int]] = {}
        self._template: ChatTemplate | None = None

    def tokens(self, example: Example) -> list[int]:
        """A prompt's tokens; one that has none, or more than the limit, stops the run."""
        found = self._truncated_tokens(example)
        if not found:
            raise RLAlignError(f"example `{example.id}`: {self._no_tokens()}")
        limit = self.config.max_prompt_tokens
        if limit is not None and len(found) > limit:
            raise RLAlignError(self._too_long(example, len(found)))
        return found

    def refuse(self, examples: Sequence[Example]) -> Mapping[int, str]:
        """Those whose prompt has no token or is too long; `too_long: error` stops at the first of these."""
        limit = None if self.config.too_long == "truncate" else self.config.max_prompt_tokens
        # The special tokens of most tokenizers fill an empty prompt; and what is read only when it is drawn is
        # not read just to look for blanks: one stops the run there.
        blanks = not isinstance(examples, LazyExamples) and not self.tokenizer("")["input_ids"]
        found: dict[int, str] = {}
        if limit is None and not blanks:
            return found
        for i, example in enumerate(examples):
            if limit is None and not (isinstance(example.prompt, str) and not example.prompt.strip()):
                continue
            length = len(self._truncated_tokens(example))
            if length == 0:
                found[i] = self._no_tokens()
            elif limit is not None and length > limit and self.config.too_long == "error":
                raise RLAlignError(self._too_long(example, length))
            elif limit is not None and length > limit:
                found[i] = f"{length} tokens are more than `max_prompt_tokens: {limit}`"
        return found

    def _no_tokens(self) -> str:
        token = self.tokenizer.bos_token or self.tokenizer.eos_token
        hint = (
            f"; write the token that begins a text, `{token}`, to have a text from its beginning"
            if token
            else ""
        )
        return f"its prompt becomes no tokens at all, and there is nothing to go on from{hint}"

    def _too_long(self, example: Example, length: int) -> str:
        return (
            f"example `{example.id}`: its prompt has {length} tokens, `max_prompt_tokens` is "
            f"{self.config.max_prompt_tokens}; `too_long: drop` leaves such examples out, `truncate` cuts them"
        )

    def _truncated_tokens(self, example: Example) -> list[int]:
        """A prompt's tokens, which `too_long: truncate` cuts to the limit, at the tokenizer's truncation side."""
        prompt, plain = example.prompt, isinstance(example.prompt, str)
        text = str(prompt) if plain else self._as_chat(example)
        key = f"{int(plain)}{text}"
        if key not in self._tokens:
            if len(self._tokens) >= REMEMBERED:
                self._tokens.clear()
            cut: dict[str, Any] = {}
            if self.config.too_long == "truncate" and self.config.max_prompt_tokens is not None:
                cut = {"truncation": True, "max_length": self.config.max_prompt_tokens}
            # A chat template writes its special tokens itself.
            require_short(example, text)
            tokens = self.tokenizer(text, add_special_tokens=plain, **cut)["input_ids"]
            self._tokens[key] = list(tokens)
        return self._tokens[key]

    def own_system(self) -> str | None:
        """The system message that the chat template puts where a chat has none."""
        mark = "…system…"
        asked = {"role": "user", "content": "…user…"}
        try:
            before, found, after = self._render([{"role": "system", "content": mark}, asked]).partition(mark)
            text = self._render([asked])
        except ValueError:  # it takes no system message
            return None
        if not (found and text.startswith(before) and text.endswith(after)):
            return None
        return text[len(before) : len(text) - len(after)].strip() or None

    def _render(self, messages: Any) -> str:
        if self._template is None:
            template = self.tokenizer.get_chat_template()
            self._template = ChatTemplate(template, self.tokenizer.special_tokens_map)
        return self._template.render(messages)

    def _as_chat(self, example: Example) -> str:
        if self.tokenizer.chat_template is None:
            raise RLAlignError(
                f"example `{example.id}`: its prompt is chat messages, and the tokenizer of {where(self.config)} has "
                "no chat template; give plain text, or name a tokenizer that has one (`tokenizer:`)"
            )
        try:
            return self._render(example.prompt)
        except ValueError as error:
            raise ConfigError(
                f"example `{example.id}`: the chat template of {where(self.config)} cannot be used: {error}; mend it, "
                "or name a tokenizer that has another one (`tokenizer:`)"
            ) from None
