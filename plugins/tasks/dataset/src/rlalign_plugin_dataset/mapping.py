"""The words in which a pipeline says what a row holds: names of columns, paths into them, templates."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from rlalign import Example
from rlalign_plugin_dataset.chats import is_dialogue, told
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.tables import Row, kind_of

MISSING = object()
"""What stands in the place of a value that is not there."""
SHOWN = 50
"""Columns that messages name."""


class Template:
    """`Q: {question}`, or the plain name of a column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.plain = "{" not in text
        self.parts = [(text, text)] if self.plain else list(_parts(text))

    @property
    def columns(self) -> list[str]:
        return [column for _, column in self.parts if column]

    def fill(self, row: Row, turn: str | None = None) -> str:
        """The template's text; `turn` ends each turn of a dialogue in it. Of a plain name use `get`."""
        return "".join(
            before + (_written(get(row, column), column, turn) if column else "")
            for before, column in self.parts
        )


def _parts(text: str) -> Sequence[tuple[str, str]]:
    parts = []
    for before, column, form, conversion in string.Formatter().parse(text):
        if form or conversion:
            raise ValueError(f"a template holds plain column names: `{{{column}}}`, without `:` or `!`")
        if column == "":
            raise ValueError("a template names its columns: `{question}`, not `{}`")
        parts.append((before, column or ""))
    return parts


def get(row: Row, name: str) -> Any:
    """A column's value; `answers.text` goes into objects, and into each object of a list."""
    value = find(row, name)
    if value is MISSING:
        raise BadRow(f"no column `{name}` (it has: {some(list(row)) or 'none'})")
    return value


def find(row: Row, name: str) -> Any:
    """A column's value, or `MISSING`."""
    return row[name] if name in row else _within(row, name.split("."))


def _within(value: Any, path: Sequence[str]) -> Any:
    for place, part in enumerate(path):
        if isinstance(value, list):
            found = [_within(one, path[place:]) for one in value]
            return MISSING if any(one is MISSING for one in found) else found
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def joined(prompt: str, response: str, join: str) -> str:
    """The response as it follows the prompt: `join` comes first where no white space parts the two."""
    if not prompt or not response or prompt[-1].isspace() or response[0].isspace():
        return response
    return join + response


def glued(example: Example) -> bool:
    """Whether a response would run on from the prompt's last word, as RL4LMs' training data did.

    What a run wrote is as its policy sampled it, whether there is a space or not.
    """
    prompt = example.prompt
    if "rlalign" in example.meta or not isinstance(prompt, str) or not prompt or prompt[-1].isspace():
        return False
    starts = [text[0] for text in example.responses if text]
    # Scripts that put no spaces between words begin further up.
    return any(c.isalnum() and c < "\u2e80" for c in starts) and prompt[-1] < "\u2e80"


def _written(value: Any, name: str, turn: str | None) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if turn is not None and is_dialogue(value):
        return told(value, turn)
    raise BadRow(f"`{name}` is {kind_of(value)}, expected text")


def quoted(names: Sequence[str]) -> str:
    """Names in a message."""
    return " and ".join(f"`{name}`" for name in names)


def some(names: Sequence[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
