"""A response's text, token by token."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

BROKEN = "�"
"""What stands for bytes that are no whole letter."""


def pieces(text: Callable[[Tensor], str], tokens_T: Tensor) -> list[str]:
    """What each token adds to the text; a letter of several tokens comes with its last one.

    A token is read behind the one before it, as its spaces depend on that, and not behind all: those are many.
    """
    found: list[str] = []
    start = read = 0
    for i in range(len(tokens_T)):
        before, now = text(tokens_T[start:read]), text(tokens_T[start : i + 1])
        whole = not now.endswith(BROKEN) or i + 1 == len(tokens_T)
        found.append(now[len(before) :] if whole else "")
        if found[-1]:
            start, read = read, i + 1
    return found
