"""Texts as a scorer's tokens: special tokens put round them, over-long ones cut, control tokens in them plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from rlalign import ComponentError, ConfigError, Example
from rlalign.data.limits import TEXT_CHARACTERS
from rlalign_plugin_hf.rendering import ChatTemplate
from rlalign_plugin_hf.spelling import Spelling

Side = Literal["left", "right"]
Messages = Sequence[Mapping[str, Any]]
REMEMBERED = 4096
"""Texts whose tokens are kept."""


class Row(NamedTuple):
    """What a model reads of one text, or of two."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    """Which of the two texts each token belongs to."""
    scored: int = 0
    """How many of the last tokens are the text that is scored, where that matters."""
    target: tuple[int, ...] = ()
    """What an encoder–decoder is to say to it."""


# -- the texts of an example ----------------------------------------------------------------------------------


def as_text(prompt: str | Messages) -> str:
    """A prompt as text: a chat's messages one after the other, without their roles."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m.get("content") or "") for m in prompt)


def texts_of(example: Example, what: str) -> tuple[str, ...]:
    """The example's `prompt`, its `references`, or what stands in its meta under another name."""
    if what == "prompt":
        return (as_text(example.prompt),)
    found = example.references if what == "references" else example.meta.get(what) or ()
    texts = (found,) if isinstance(found, str) else tuple(found) if isinstance(found, list | tuple) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        if what == "references":
            raise ComponentError(f"references are needed, and {example.without_references}")
        keys = ", ".join(example.meta) or "nothing"
        raise ComponentError(f"example `{example.id}` has no text under `{what}` (its `meta` holds: {keys})")
    return texts


# -- tokens ----------------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    """The special tokens round one text, or two."""

    around: tuple[tuple[int, ...], ...]
    """Before each text, and after the last."""
    types: tuple[tuple[int, ...], ...]
    """Of these tokens."""
    inside: tuple[int, ...]
    """The type of each text's own tokens."""

    @property
    def size(self) -> int:
        return sum(map(len, self.around))


class Reader:
    """A tokenizer whose texts are never longer than the model reads, and never hold a control token.

    `longest` is None where nothing bounds a row.
    """

    def __init__(self, tokenizer: Any, longest: int | None, side: Side = "right") -> None:
        self.tokenizer = tokenizer
        self.longest = longest
        self.side = side
        """The end at which what is too long is cut."""
        self.spelling = Spelling(tokenizer)
        self._plain = lru_cache(REMEMBERED)(self._read)
        self._frames = [self._framed(1), self._framed(2)]
        least = max(frame.size for frame in self._frames) + 2
        if longest is not None and longest < least:
            raise ConfigError(f"`max_tokens: {longest}` leaves no room for text; say {least} or more")
        self.typed = "token_type_ids" in tokenizer("a")
        """Whether the model is told which text a token belongs to: GPT-2 would take that for a word."""
        self._template: ChatTemplate | None = None

    @property
    def blank(self) -> int:
        """A token that stands for no text, where a row would have none."""
        t = self.tokenizer
        named = (t.bos_token_id, t.eos_token_id, t.cls_token_id, t.pad_token_id)
        return int(next((token for token in named if token is not None), 0))

    def plain(self, text: str) -> tuple[int, ...]:
        """The tokens of a text and nothing else; a control token spelt in it is ordinary text."""
        return self._plain(text)

    def _read(self, text: str) -> tuple[int, ...]:
        if len(text) > TEXT_CHARACTERS:
            raise ComponentError(
                f"a text of {len(text):,} characters; the longest that becomes tokens has {TEXT_CHARACTERS:,}"
            )
        return tuple(self.spelling.plain(text))

    def one(self, text: str) -> Row:
        """A text with the special tokens of a single one."""
        frame = self._frames[0]
        return self._put(frame, self.cut(self.plain(text), frame.size))

    def two(self, first: str, second: str) -> Row:
        """Two texts as the tokenizer pairs them; the first is cut before the second is."""
        frame = self._frames[1]
        ids = self.cut(self.plain(second), frame.size)
        return self._put(frame, self.cut(self.plain(first), frame.size + len(ids)), ids)

    def joined(self, first: str, separator: str, second: str) -> Row:
        """Two texts as one; a special token that the separator spells is one. The first is cut before the second is."""
        frame = self._frames[0]
        if not self.spelling.found(separator):
            whole = self.plain(first + separator + second)
            if self.longest is None or len(whole) + frame.size <= self.longest:
                return self._put(frame, whole)
        ids = (*self.spelling.trusted(separator), *self.plain(second))
        ids = self.cut(ids, frame.size)
        return self._put(frame, (*self.cut(self.plain(first), frame.size + len(ids)), *ids))

    def chat(self, messages: Messages) -> Row:
        """A chat as the tokenizer's template writes it, with no answer to come; of one too long the end is kept."""
        ids = self._templated(messages, answered=True)
        ids = ids if self.longest is None else ids[-self.longest :]
        return Row(ids or (self.blank,), (0,) * max(1, len(ids)))

    def context(self, prompt: str | Messages | None) -> tuple[int, ...]:
        """What a language model reads before a response; without a prompt, a token that begins a text, if any."""
        if prompt is not None and not isinstance(prompt, str) and self.tokenizer.chat_template is not None:
            return self._templated(prompt, answered=False)
        start = self._frames[0].around[0]
        if prompt:
            return (*start, *self.plain(as_text(prompt)))
        begins = self.tokenizer.bos_token_id is not None or self.tokenizer.eos_token_id is not None
        return start or ((self.blank,) if begins else ())

    def after(self, context: tuple[int, ...], text: str) -> Row:
        """A text that is scored as it follows a context, whose beginning is cut before the text's end is."""
        ids, before = self.plain(text), context
        if self.longest is not None:
            ids = ids[: self.longest - min(1, len(context))]
            before = context[max(0, len(context) + len(ids) - self.longest) :]
        row = (*before, *ids)
        return Row(row, (0,) * len(row), len(ids) if before else max(0, len(ids) - 1))

    def cut(self, ids: tuple[int, ...], taken: int) -> tuple[int, ...]:
        """As many tokens as a row has room for beside those that are taken."""
        if self.longest is None or len(ids) + taken <= self.longest:
            return ids
        room = max(0, self.longest - taken)
        return ids[len(ids) - room :] if self.side == "left" else ids[:room]

    def _put(self, frame: _Frame, *texts: tuple[int, ...]) -> Row:
        ids: list[int] = []
        types: list[int] = []
        for place, (around, kinds) in enumerate(zip(frame.around, frame.types, strict=True)):
            ids += around
            types += kinds
            if place < len(texts):
                ids += texts[place]
                types += [frame.inside[place]] * len(texts[place])
        return Row(tuple(ids), tuple(types)) if ids else Row((self.blank,), (0,))

    def _framed(self, count: int) -> _Frame:
        """What the tokenizer puts round so many texts, read off an example."""
        words = [self._word()] * count
        made = self.tokenizer(*words)
        ids = list(made["input_ids"])
        types = list(made.get("token_type_ids") or [0] * len(ids))
        inner = self.spelling.trusted(words[0])
        around, outer, inside, at = [], [], [], 0
        for _ in words:
            places = range(at, len(ids) - len(inner) + 1)
            start = next((i for i in places if ids[i : i + len(inner)] == inner), None)
            if start is None or not inner:
                raise ConfigError(f"{self.tokenizer.name_or_path}: its tokenizer does not keep texts whole")
            around.append(tuple(ids[at:start]))
            outer.append(tuple(types[at:start]))
            inside.append(types[start])
            at = start + len(inner)
        return _Frame((*around, tuple(ids[at:])), (*outer, tuple(types[at:])), tuple(inside))

    def _templated(self, messages: Messages, *, answered: bool) -> tuple[int, ...]:
        texts = [{**m, "content": str(m.get("content") or "")} for m in messages]
        shown, said = self.spelling.hidden(texts)
        return tuple(self.spelling.shown(self._render(shown, answered=answered), said))

    def _word(self) -> str:
        """A text that becomes ordinary tokens."""
        for word in ("a", *map(str, sorted(self.tokenizer.get_vocab())[:1000])):
            ids = self.spelling.trusted(word)
            if ids and not self.spelling.tokens & set(ids):
                return word
        return "a"

    def _render(self, messages: Messages, *, answered: bool) -> str:
        if self._template is None:
            self._template = ChatTemplate(
                self.tokenizer.get_chat_template(), self.tokenizer.special_tokens_map
            )
        try:
            return self._template.render(messages, answered=answered)
        except ValueError as error:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: its chat template cannot be used: {error}"
            ) from None
