"""Bytes that an iteration takes on each device, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlalign.costs.machines import Machine
from rlalign.costs.shape import Shape, Work

TAKEN = 0.9
"""Share of a device's memory that may be planned with: the rest is its driver's, and lost between pieces."""
LOGITS = 4
"""Tensors as large as a chunk's logits that are there at the same time."""
SAMPLED = 1 / 4
"""Share of a device's memory that the rows of a rollout may take. Not of what is free: a run that is resumed finds
other memory free, and goes on to the bit.
"""
ROOM = 64
"""Columns of keys and values that are made ready ahead of a row."""


@dataclass(frozen=True)
class Bytes:
    """Part by part. Keys and values, and a sampler, stand where gradients and activations do while a policy learns."""

    weights: float
    copies: float
    """Other models of its size, as they are held."""
    gradients: float
    optimiser: float
    """Two moments, and float32 masters of weights in half precision."""
    half: float
    """Copies of float32 weights in bfloat16: the sampler's, and those that a pass makes for itself."""
    sampler: float
    """Weights that are put together out of their shards, to sample with."""
    block: float
    """What is put together at once while a pass goes on: two layers; of weights that are offloaded, the embeddings and
    the head with their gradients, too."""
    activations: float
    logits: float
    cache: float
    """Keys and values of the rows that are sampled at once."""
    snapshot: float
    """What the next checkpoint is written from, where that memory is the machine's own."""
    offloaded: float = 0.0
    """Of the machine's memory, not of the device's: weights, other models, gradients and moments."""

    @property
    def stays(self) -> float:
        """What is there all the time."""
        return self.weights + self.copies + self.optimiser + self.half + self.snapshot

    @property
    def learning(self) -> float:
        return self.stays + self.gradients + self.block + self.activations + self.logits

    @property
    def sampling(self) -> float:
        return self.stays + self.sampler + self.cache

    @property
    def most(self) -> float:
        return max(self.learning, self.sampling)


def taken(
    of: Shape,
    work: Work,
    on: Machine,
    *,
    tokens: int,
    chunk: int,
    rows: int,
    copies: float = 0,
    shares: int = 1,
    offload: bool = False,
) -> Bytes:
    """On each device, of micro-batches of so many `tokens`, heads of `chunk` rows, `rows` sampled at once.

    `copies`: bytes a weight of other models of this size. `shares`: among how many devices weights, gradients and
    moments are divided; to sample each puts the weights together, and makes the copies that it computes with.
    `offload`: what is divided lies in the machine's memory; adapters do not.
    """
    cut = shares > 1 or offload
    learned = of.learned if work.learns else 0
    masters = 4 if work.held == 2 else 0
    each = 2 if work.dtype == "bfloat16" else 4
    casts = work.dtype == "bfloat16" and work.held == 4
    merged = learned and of.learned < of.weights  # adapters are added into what the sampler reads
    read = each * of.weights if casts or merged else 0.0
    half = 0.0 if cut else read + (2 * learned if casts else 0.0)
    kept_models = (work.held + copies) * of.weights + (8 + masters) * learned
    kept = of.left(again=work.recompute, half=work.held == 2)
    found = Bytes(
        weights=work.held * of.weights / shares,
        copies=copies * of.weights / shares,
        gradients=4 * learned / shares,
        optimiser=(8 + masters) * learned / shares,
        half=half,
        sampler=work.held * of.weights + read if cut and work.sampled else 0.0,
        block=2 * 4 * of.block if cut else 0.0,
        activations=(kept * tokens) if work.learns else 0.0,
        logits=LOGITS * 4 * chunk * of.vocabulary if work.learns else 0.0,
        cache=rows * row_bytes(of, work.prompt + work.longest, each) if work.sampled else 0.0,
        snapshot=float(kept_models) if on.device.cpu else 0.0,
    )
    if not offload or on.device.cpu:
        return found
    gone = [found.weights, found.copies]
    if not merged:
        gone += [found.gradients, found.optimiser]
        found = replace(found, gradients=0.0, optimiser=0.0)
    rest = max(of.head, of.weights - of.layers * of.block)
    block = found.block + (2 if learned and not merged else 1) * 4 * rest
    return replace(found, weights=0.0, copies=0.0, block=block, offloaded=sum(gone))


def row_bytes(of: Shape, tokens: float, each: int) -> float:
    """What a row of so many tokens takes while it is sampled: keys and values of `each` bytes, and logits."""
    return each * of.cache * (tokens + ROOM) + LOGITS * 4 * of.vocabulary


def rows_at_once(of: Shape, work: Work, on: Machine, stays: float, *, most: int) -> int:
    """How many responses are sampled at once beside what stays in memory, `most` at most; 0: none can be."""
    each = row_bytes(of, work.prompt + work.longest, 2 if work.dtype == "bfloat16" else 4)
    room = min(TAKEN * on.device.memory - stays, SAMPLED * on.device.memory)
    return max(0, min(most, int(room / each)))
