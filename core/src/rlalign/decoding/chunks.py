"""Prompts taken together as far as memory goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from rlalign.costs.memory import SAMPLED
from rlalign.data.limits import machine_memory
from rlalign.decoding.interfaces import Decodable
from rlalign.world.ranks import here

Done = TypeVar("Done")


def rows_that_fit(policy: Decodable, device: torch.device, tokens: int) -> float:
    """How many rows of so many tokens a CPU samples at once: nothing says there that memory has run out."""
    each = policy.row_bytes(tokens) if device.type == "cpu" else None
    return SAMPLED * machine_memory() / here().beside / each if each else math.inf


def in_chunks(
    policy: Decodable, prompts: int, k: int, do: Callable[[slice], Done], rows: float = math.inf
) -> list[Done]:
    """`do` for all prompts, in as few pieces as fit: where memory runs out, a piece is half as large from then on.

    `rows`: the most at once.
    """
    found: list[Done] = []
    at = 0
    while at < prompts:
        size = max(1, int(min(rows, policy.at_once or prompts * k) // k))
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
