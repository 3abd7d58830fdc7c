"""How many tokens a model may read at once while it learns, so that what they leave behind fits the memory."""

from __future__ import annotations

import torch

from rlalign.data.limits import free_memory
from rlalign.interface.policy import Footprint

MOST, HEAD_CHUNK = {"cpu": 16384}, {"cpu": 256}
"""Padded tokens of a micro-batch, and rows of logits, on a kind of device where memory is no matter."""
OTHERS = 65536, 2048
FEW = 1 << 23
"""Bytes of logits that may be there whatever the device: small vocabularies have more rows then."""
LEAST = 256
SHARE = 0.5
"""Of the memory that is free: the rest is for sampling, rewards, and whatever else the machine does."""
LOGITS = 4
"""Tensors as large as a chunk's logits that are there at the same time."""


def most_tokens(device: torch.device) -> int:
    """Padded tokens of a micro-batch, and no more however much memory there is."""
    return MOST.get(device.type, OTHERS[0])


def head_chunk(device: torch.device, of: Footprint | None = None) -> int:
    """Rows of logits that are there at the same time."""
    rows = HEAD_CHUNK.get(device.type, OTHERS[1])
    return rows if of is None else max(rows, FEW // max(1, of.logits))


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where it does not say."""
    if device.type == "cpu":
        return free_memory()
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fitting_tokens(of: Footprint, free: int, *, copies: int, most: int, chunk: int) -> int:
    """Padded tokens of a micro-batch beside all that stays in memory: a power of two, or `most`.

    `free` is what there is once the policy is loaded; `copies` are other models of its size.
    """
    stays = copies * of.weights + 3 * of.learned + LOGITS * chunk * of.logits
    fits = max(0, int(SHARE * free) - stays) // max(1, of.token)
    return most if fits >= most else max(LEAST, 2 ** (fits.bit_length() - 1) if fits else 0)
