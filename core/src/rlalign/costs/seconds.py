"""Seconds of an iteration. Equations of the cost model; docs/machines.md holds them against published figures.

Efficiencies are shares of a data sheet's rates. Where a constant comes from stands beside it; `calibrated` means:
chosen with the others so that Llama-3.1-8B on 16 H100 (2,048 responses of 1,060 tokens) takes 76 s, and about 69 s with
sampler and learner side by side. NeMo-RL 0.4 published 97.7 s and 74.6 s (docs/about/performance-summary.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlalign.costs.machines import Machine
from rlalign.costs.shape import Shape, Work

SAMPLE = 0.55
"""Of bandwidth, or of arithmetic, while sampling: calibrated."""
SCORE = 0.45
"""Of arithmetic in forward passes: calibrated."""
TRAIN = 0.38
"""Of arithmetic while learning: the 33–39 % of torchtitan's FSDP2 runs of 8B on 8 H100
(benchmarks/llama3_h100_202412_torchtitan.md)."""
CPU_SAMPLE, CPU_SCORE, CPU_TRAIN = 0.25, 0.75, 0.66
"""The same on a CPU, of rates measured there: from runs of small models on one AMD EPYC (docs/machines.md)."""
LOOP, PASS = 28, 220
"""What a step of the sampling loop, and a forward pass, cost beside their layers, in launches of a layer: of runs of a
model too small to compute anything, on the same CPU."""
ROWS = 256
"""Rows that a sampler steps at once at most: vLLM's usual `max_num_seqs`."""
EXCHANGE = 12.5e-6
"""Seconds of one of the two exchanges a layer between tensor-parallel ranks, at each token: assumed, an all-reduce of a
few kilobytes over NVLink."""
RELOAD = 25e9
"""Bytes a second at which a sampler on the same devices takes new weights: estimated, as the next."""
WAKE = 2.0
"""Seconds in which such a sampler gives its memory back and takes it again."""
NETWORK = 8.25e9
"""Bytes a second at which weights go to samplers elsewhere: 30B to 30 engines in 7 s on 4 × 8 H100 (verl,
checkpoint_engine)."""
DISK = 2e9
"""Bytes a second that a node writes: assumed."""
PCIE = 25e9
"""Bytes a second between the machine's memory and a device, each way: assumed; PCIe 4.0 has 32, 5.0 has 64 on paper."""
HOST = 100e9
"""Bytes a second that the processors of a node read and write of its memory while they step and add: assumed."""
STATE = 14
"""Bytes of a checkpoint for each weight that learns: bfloat16 weights, float32 masters and two moments."""


@dataclass(frozen=True)
class Seconds:
    """Of each part of an iteration."""

    rollout: float = 0.0
    score: float = 0.0
    update: float = 0.0
    exchange: float = 0.0
    """Gradients between devices, or weights to a sampler."""
    ahead: bool = False
    """Whether the next responses are sampled meanwhile, on other devices."""

    @property
    def total(self) -> float:
        learning = self.score + self.update + self.exchange
        return max(self.rollout, learning) if self.ahead else self.rollout + learning


def rollout(
    of: Shape, work: Work, on: Machine, *, tensor: int = 1, rows: int = ROWS, weight: float = 2
) -> float:
    """All responses, on `count / tensor` samplers of `tensor` devices; `weight` bytes are read for each weight.

    A step reads all weights and the cache of its rows, or computes, whichever takes longer; then the longest response
    goes on alone.
    """
    if not work.sampled:
        return 0.0
    samplers, device = max(1, on.count // tensor), on.device
    each = work.responses / samplers
    at_once = max(1.0, min(rows, each))
    share = CPU_SAMPLE if device.cpu else SAMPLE
    read, compute = tensor * device.bandwidth * share, tensor * device.rate(work.dtype) * share
    weights = of.response + of.head  # that each token is multiplied with
    context = work.prompt + work.response / 2
    cache = weight * of.cache * context
    pairs = 4 * of.attention * context
    delay = (of.layers + LOOP) * device.launch + of.layers * (2 * EXCHANGE if tensor > 1 else 0.0)

    def step(count: float) -> float:
        reading = (weight * of.touched(count) + count * cache) / read
        return max(reading, count * (2 * weights + pairs) / compute) + delay

    prompts = 2 * of.prompt * (work.prompts / samplers) * work.prompt / compute if of.once else 0.0
    tail = max(0.0, work.longest - work.response) * (weight * weights / read + delay)
    return each / at_once * work.response * step(at_once) + tail + prompts


def operations(of: Shape, work: Work) -> float:
    """Of one forward pass over all responses."""
    prompts = work.prompts if of.once else work.responses
    tokens = prompts * work.prompt * of.prompt + work.responses * work.response * (of.response + of.head)
    return 2 * tokens + 2 * of.attention * work.responses * (work.prompt + work.response) ** 2


def score(of: Shape, work: Work, on: Machine) -> float:
    """The forward passes beside the learning."""
    share = CPU_SCORE if on.device.cpu else SCORE
    computed = operations(of, work) / (on.count * on.device.rate(work.dtype) * share)
    return work.passes * (computed + PASS * on.device.launch)


def update(of: Shape, work: Work, on: Machine) -> float:
    """Three forward passes' worth of operations an epoch, four where activations are computed again.

    Adapters spare the gradients of the weights they stand beside: a third.
    """
    if not work.learns:
        return 0.0
    share = CPU_TRAIN if on.device.cpu else TRAIN
    times = (4 if work.recompute else 3) - (1 if of.learned < of.weights / 2 else 0)
    computed = times * operations(of, work) / (on.count * on.device.rate(work.dtype) * share)
    # AdamW reads 16 bytes of a weight and writes 12.
    stepped = work.steps * (28 * of.learned / on.device.bandwidth + 2 * PASS * on.device.launch)
    return work.epochs * (computed + (stepped if on.device.cpu else 0.0))


def summed(of: Shape, work: Work, on: Machine) -> float:
    """Float32 gradients summed over devices that hold all weights each, at each optimiser step."""
    if on.count == 1 or not work.learns:
        return 0.0
    rate = on.device.link if on.nodes == 1 else min(on.device.link, 50e9)  # 400 Gb/s a device between nodes
    return work.epochs * work.steps * 2 * 4 * of.learned / rate


def put_together(of: Shape, work: Work, on: Machine, *, passes: float) -> float:
    """Float32 weights that are cut, put together: once to sample, in each of so many passes of each model that scores,
    twice in those of learning, which sum gradients too. As if nothing of it were hidden behind computing.
    """
    rate = on.device.link if on.nodes == 1 else min(on.device.link, 50e9)
    times = bool(work.sampled) + passes * (work.passes + (3 * work.epochs if work.learns else 0))
    return times * 4 * of.weights / rate


def offloaded(of: Shape, work: Work, on: Machine, *, passes: float) -> float:
    """What `put_together` puts together comes from the machine's memory, where gradients go and the optimiser steps.
    As if nothing of it were hidden behind computing.
    """
    times = bool(work.sampled) + passes * (work.passes + (2 * work.epochs if work.learns else 0))
    brought = times * 4 * of.weights / on.count / PCIE
    if not work.learns or of.learned < of.weights:  # adapters stay where they are
        return brought
    # Those of a micro-batch are added to those before.
    gradients = passes * work.epochs * (4 / on.count / PCIE + 12 / on.nodes / HOST)
    stepped = work.epochs * work.steps * 28 / on.nodes / HOST
    return brought + of.learned * (gradients + stepped)


def reloaded(of: Shape, *, tensor: int = 1) -> float:
    """A sampler of its own on the same devices takes the new weights."""
    return 2 * of.weights / (tensor * RELOAD) + WAKE


def moved(of: Shape, work: Work) -> float:
    """A sampler on other devices takes the new weights, as they are held."""
    return work.held * of.weights / NETWORK


def whole(of: Shape, work: Work, on: Machine, *, rows: int = ROWS, weight: float = 2) -> Seconds:
    """Each device holds the whole model, samples its share of the prompts and learns from it; no weights travel."""
    return Seconds(
        rollout(of, work, on, rows=rows, weight=weight),
        score(of, work, on),
        update(of, work, on),
        summed(of, work, on),
    )


def sharded(of: Shape, work: Work, on: Machine, *, tensor: int = 1, rows: int = ROWS) -> Seconds:
    """Weights and optimiser in shards; a sampler of its own, `tensor` devices wide, on the same devices."""
    return Seconds(
        rollout(of, work, on, tensor=tensor, rows=rows),
        score(of, work, on),
        update(of, work, on),
        reloaded(of, tensor=tensor),
    )


def halves(of: Shape, work: Work, on: Machine, *, tensor: int = 1) -> tuple[float, float]:
    """Seconds of a step where half of the devices sample and half learn: in turns, and one step off policy."""
    half = on.with_count(max(1, on.count // 2))
    sampling = rollout(of, work, half, tensor=tensor)
    learning = score(of, work, half) + update(of, work, half)
    moving = 2 * of.weights / NETWORK
    return sampling + learning + moving, max(sampling, learning) + moving


def checkpoint(of: Shape, on: Machine, *, size: float = 0) -> float:
    """Seconds in which a checkpoint is written; of `size` bytes, if it is not what a large run keeps."""
    return (size or STATE * of.weights) / (on.nodes * DISK)
