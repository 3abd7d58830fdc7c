"""What a card could do at most: its measured rates, and how long a step of decoding takes at those.

A step reads every weight it multiplies with once, each row's keys and values, and writes and reads the logits; or it
is bound by arithmetic, two operations a weight and row and those of attention. Whichever takes longer is the floor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(way: Callable[[], Any]) -> float:
    wait()
    started = time.perf_counter()
    way()
    wait()
    return time.perf_counter() - started


def median(way: Callable[[], Any], rounds: int = 5) -> float:
    """Seconds, of the rounds after the first."""
    return statistics.median([timed(way) for _ in range(rounds + 1)][1:])


@dataclass(frozen=True)
class Rates:
    """Measured: bytes read and written a second by a copy, and operations a second by a large matrix product."""

    bytes: float
    flops: float


def rates(device: str, dtype: torch.dtype = torch.bfloat16) -> Rates:
    size = 8192 if device != "cpu" else 256
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * size**3 / median(lambda: a @ b)
    x = torch.empty(size * size * 8, device=device, dtype=dtype)
    y = torch.empty_like(x)
    return Rates(2 * x.numel() * x.element_size() / median(lambda: y.copy_(x)), flops)


@dataclass(frozen=True)
class Sizes:
    """What of a model the floors depend on."""

    read: int
    """Weights that a step multiplies with: all but tables that are only looked up."""
    trained: int
    layers: int
    hidden: int
    kv: int
    """Numbers in the keys and values of one token."""
    vocabulary: int


def sizes(network: Any) -> Sizes:
    config = network.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    every = sum(p.numel() for p in network.parameters())
    looked_up = 0 if config.tie_word_embeddings else network.get_input_embeddings().weight.numel()
    return Sizes(
        read=every - looked_up,
        trained=every,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv=2 * config.num_hidden_layers * heads * head,
        vocabulary=config.vocab_size,
    )


def step_seconds(model: Sizes, rows: int, context: float, rates: Rates, width: int = 2) -> float:
    """The floor of one step for `rows` responses after `context` tokens each; numbers are `width` bytes wide."""
    cache = rows * context * model.kv * width
    logits = rows * model.vocabulary * (width + 4)
    moved = model.read * width + cache + logits
    work = rows * (2 * model.read + 4 * context * model.hidden * model.layers)
    return max(moved / rates.bytes, work / rates.flops)


def rollout_seconds(
    model: Sizes, rows: int, k: int, prompt: int, new: int, rates: Rates, width: int = 2
) -> float:
    """The floor of a rollout: each distinct prompt read once, then `new` steps."""
    reading = rows // k * prompt * 2 * model.read / rates.flops
    return reading + sum(step_seconds(model, rows, prompt + t, rates, width) for t in range(new))


def train_seconds(model: Sizes, tokens: int, rates: Rates) -> float:
    """Forward and backward at six operations a weight and token."""
    return 6 * model.trained * tokens / rates.flops


def least_train_seconds(model: Sizes, prompts: int, k: int, prompt: int, new: int, rates: Rates) -> float:
    """The same of what must be computed: each prompt once for its k responses, the head for responses alone."""
    head, answers = model.vocabulary * model.hidden, prompts * k * new
    return 6 * ((model.read - head) * (prompts * prompt + answers) + head * answers) / rates.flops
