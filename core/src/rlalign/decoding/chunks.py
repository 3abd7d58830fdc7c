"""Prompts taken together as far as memory goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from rlalign.decoding.interfaces import Decodable

Done = TypeVar("Done")


def in_chunks(policy: Decodable, prompts: int, k: int, do: Callable[[slice], Done]) -> list[Done]:
    """`do` for all prompts, in as few pieces as fit: where memory runs out, a piece is half as large from then on."""
    found: list[Done] = []
    at = 0
    while at < prompts:
        size = max(1, (policy.at_once or prompts * k) // k)
        piece = slice(at, min(at + size, prompts))
        try:
            found.append(do(piece))
        except torch.OutOfMemoryError as error:
            most = piece.stop - at
            if most == 1:
                error.add_note(
                    f"{k} responses to one prompt do not fit: lower `generation.samples` or `max_new_tokens`, or "
                    "use a smaller model"
                )
                raise
            policy.at_once = k * (-(-most // 2))
        else:
            at = piece.stop
    return found
