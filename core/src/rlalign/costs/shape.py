"""A language model and an iteration's work as numbers: all that the cost model reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What of a model decides its costs. Weights are counted, not bytes."""

    weights: int
    """All of them."""
    learned: int
    """Those that learn: all, or an adapter's."""
    adapters: int
    """Those of low-rank adapters of rank 16 on all linear layers: what would learn with `lora`."""
    prompt: int
    """Those that a token of a prompt is multiplied with; of an encoder–decoder the encoder's."""
    response: int
    """Those that a token of a response is multiplied with, the head apart."""
    head: int
    """Vocabulary × width: those of the head, which reads responses alone."""
    layers: int
    width: int
    vocabulary: int
    cache: int
    """Numbers that a token leaves in the key–value cache, all layers together."""
    block: int
    """Weights of the largest layer."""
    kept: int
    """Bytes that a token leaves behind for the backward pass."""
    half: float = 1.0
    """The share of them that is left where weights are held in half precision."""
    attention: int = 0
    """Layers × width of all heads: a pair of tokens costs so many products twice."""
    resting: int = 0
    """Of a mixture of experts: the weights of those that a token does not go through."""
    once: bool = False
    """Whether a prompt is computed once for all its responses where a model learns or scores."""

    def touched(self, rows: float) -> float:
        """Weights that are read for a token of each of so many rows: the more rows, the more experts."""
        used: float = self.response / (self.response + self.resting)
        met = 1.0 - (1.0 - used) ** max(0.0, rows - 1)
        return float(self.response + self.head + self.resting * met)

    def left(self, *, again: bool, half: bool) -> float:
        """Bytes that stay of a token where layers are computed `again`, or weights held in `half` precision."""
        kept = self.recomputed + self.kept / max(1, self.layers) if again else self.kept
        return kept * (self.half if half else 1)

    @property
    def recomputed(self) -> int:
        """Bytes that a token leaves behind where layers are computed again: what each reads, in float32."""
        return 4 * self.layers * self.width


@dataclass(frozen=True)
class Work:
    """What an iteration does."""

    prompts: int
    samples: int
    """Responses to each."""
    prompt: float
    """Tokens of a prompt, on average."""
    response: float
    """Tokens of a response, on average."""
    longest: float
    """Tokens of the longest response."""
    dtype: str = "bfloat16"
    """What is computed in."""
    held: int = 4
    """Bytes of a weight."""
    epochs: int = 1
    steps: int = 1
    """Optimiser steps of an epoch."""
    passes: float = 2.0
    """Forward passes over all responses beside the learning: one of each model that scores them."""
    recompute: bool = False
    sampled: bool = True
    learns: bool = True

    @property
    def responses(self) -> int:
        return self.prompts * self.samples

    @property
    def tokens(self) -> float:
        """Of all responses, each with its prompt."""
        return self.responses * (self.prompt + self.response)
