"""Every random number of a run, derived from its seed and a key; nothing continues a running stream.

So a number depends on what it is for (`"sample", phase, iteration`), never on what was drawn before it,
how the work was cut, or whether the run was resumed.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor


@contextmanager
def global_seeds_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's global generators go on afterwards as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Seeds:
    """The root of a run's randomness."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def rng(self, *key: str | int) -> torch.Generator:
        """A fresh CPU generator for this key: the same each time it is asked for."""
        return torch.Generator().manual_seed(self._number(key))

    def uniforms(self, *key: str | int, positions: range, samples: int, steps: int) -> Tensor:
        """Numbers strictly between 0 and 1, float32 [positions, samples, steps].

        The row of (position, sample) is a prefix of an endless stream of its own: it knows neither how
        many positions, samples or steps were asked for, nor which others. Numbers are multiples of 2⁻²³
        moved by half a step, so that an inverse CDF never meets its two ends.
        """
        # An extendable hash rather than generators: torch's CPU generator keeps 32 bits of its seed, few
        # enough for two of a long run's millions of streams to meet, and seeding one takes 10 times longer.
        root = hashlib.shake_256(self._encode(key))
        streams = []
        for position in positions:
            for sample in range(samples):
                stream = root.copy()
                stream.update(struct.pack("<qq", position, sample))
                streams.append(stream.digest(4 * steps))
        bits = np.frombuffer(b"".join(streams), dtype="<u4") >> np.uint32(9)
        u = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
        return torch.from_numpy(u.reshape(len(positions), samples, steps))

    def numbers(self, *key: str | int, positions: range, samples: int) -> list[list[int]]:
        """Seeds of 63 bits for whoever draws its own numbers, [positions][samples]: as `uniforms`, one a stream."""
        root = hashlib.shake_256(self._encode(("seed", *key)))

        def seed(position: int, sample: int) -> int:
            stream = root.copy()
            stream.update(struct.pack("<qq", position, sample))
            return int.from_bytes(stream.digest(8), "little") >> 1

        return [[seed(position, sample) for sample in range(samples)] for position in positions]

    def seed_forward(self, *key: str | int) -> None:
        """Seed torch's global generators before what draws from them, for it offers no other way: dropout
        in a forward pass, a module's first weights. This and `seed_all` alone touch global state.
        """
        self._seed_torch(self._number(key))

    def seed_all(self, *key: str | int) -> None:
        """Seed all global generators, Python's and NumPy's too, for code of others that draws from them."""
        seed = self._number(key)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        self._seed_torch(seed)

    @staticmethod
    def _seed_torch(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)

    def _encode(self, key: tuple[str | int, ...]) -> bytes:
        # JSON tells ("a", 1) from ("a1",) and ("a", "1"), and refuses what has no one spelling.
        return json.dumps([self.seed, *key]).encode()

    def _number(self, key: tuple[str | int, ...]) -> int:
        return int.from_bytes(hashlib.sha256(self._encode(key)).digest()[:8], "little")


@dataclass(frozen=True)
class Draws(Sequence[Sequence[int]]):
    """The random numbers of some responses, for whoever samples in the policy's place.

    It reads as a list: of each example in turn, a seed of 63 bits for each response. Who samples as the policy does
    takes `uniforms` instead, and comes to the policy's own tokens.
    """

    seed: int
    """The root of the run's randomness."""
    key: tuple[str | int, ...]
    positions: range
    """Where the examples stand in the draw."""
    samples: int

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, place: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, place: slice) -> Draws: ...
    def __getitem__(self, place: int | slice) -> Sequence[int] | Draws:
        if isinstance(place, slice):
            return replace(self, positions=self.positions[place])
        position = self.positions[place]
        alone = range(position, position + 1)
        return Seeds(self.seed).numbers(*self.key, positions=alone, samples=self.samples)[0]

    def uniforms(self, steps: int) -> Tensor:
        """[examples, samples, steps]: what the policy itself would draw with."""
        seeds = Seeds(self.seed)
        return seeds.uniforms(*self.key, positions=self.positions, samples=self.samples, steps=steps)
