"""What a file says and what was expected, in words, for messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from rlalign.errors import concealed


def found(value: Any) -> str:
    """A value and its type in words, for messages."""
    if isinstance(value, bool):
        words = "yes and on" if value else "no and off"
        return f"{str(value).lower()} (YAML reads {words} so too; quote the word if it is text)"
    if value is None:
        return "nothing (null)"
    said = concealed(repr(value))
    shown = said if len(said) <= 60 else said[:59] + "…"
    types = {
        str: "text",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return f"{shown} ({types.get(type(value), type(value).__name__)})"


_ELSEWHERE = {
    "learning_rate": "lr",
    "batch_size": "prompts",
    "max_length": "max_new_tokens",
    "num_epochs": "epochs",
}
"""What other libraries call it."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """`; did you mean `clip`?`, or nothing."""
    names = dict.fromkeys(known)
    close = get_close_matches(name, names, most)
    if _ELSEWHERE.get(name) in names:
        close = [_ELSEWHERE[name]]
    return f"; did you mean {' or '.join(f'`{other}`' for other in close)}?" if close else ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown option; did you mean `clip`? (options: beta, clip)`"""
    names = list(known)
    if not names:
        return f"unknown {what}; there are none"
    return f"unknown {what}{did_you_mean(name, names)} ({what}s: {', '.join(names)})"
