"""Many numbers in their order, or each once in an order of chance, with memory for a few of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy

AT_ONCE = 2**21
"""Numbers that are sorted together."""
_MIX = numpy.uint64(0x9E3779B97F4A7C15), numpy.uint64(0xBF58476D1CE4E5B9), numpy.uint64(0x94D049BB133111EB)
ROUNDS = 4
"""Of the keyed permutation; each has a key."""


def ordered(keys: numpy.ndarray, at_once: int | None = None) -> Iterator[numpy.ndarray]:
    """Places of the keys from the least to the largest, equal ones in their own order, piece by piece.

    Keys of 64 bits without sign that are hashes come in pieces of about `at_once`; equal keys never lie in two.
    """
    at_once = at_once or AT_ONCE
    bits = max(0, (len(keys) // at_once).bit_length()) if keys.dtype == numpy.uint64 else 0
    if not bits:
        yield numpy.argsort(keys, kind="stable")
        return
    shift = numpy.uint64(64 - bits)
    for part in range(2**bits):
        places = numpy.concatenate(
            [
                numpy.flatnonzero(keys[start : start + at_once] >> shift == part) + start
                for start in range(0, len(keys), at_once)
            ]
        )
        yield places[numpy.argsort(keys[places], kind="stable")]


def permuted(places: numpy.ndarray, size: int, keys: Sequence[int]) -> numpy.ndarray:
    """Where a permutation of `range(size)` sends these places: a Feistel network, walked until it ends within.

    The places alone take memory. Black and Rogaway, Ciphers with arbitrary finite domains, 2002.
    """
    half = numpy.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    found = places.astype(numpy.uint64)
    left = numpy.arange(len(found))
    while len(left):
        found[left] = _feistel(found[left], half, keys)
        left = left[found[left] >= size]
    return found.astype(numpy.int64)


def _feistel(x: numpy.ndarray, half: numpy.uint64, keys: Sequence[int]) -> numpy.ndarray:
    mask = (numpy.uint64(1) << half) - numpy.uint64(1)
    high, low = x >> half, x & mask
    for key in keys:
        high, low = low, high ^ (_mixed(low, numpy.uint64(key)) & mask)
    return (high << half) | low


def _mixed(x: numpy.ndarray, key: numpy.uint64) -> numpy.ndarray:
    """64 bits that depend on all bits of both: the finaliser of splitmix64."""
    x = (x + numpy.uint64(1)) * _MIX[0] ^ key
    x = (x ^ (x >> numpy.uint64(30))) * _MIX[1]
    x = (x ^ (x >> numpy.uint64(27))) * _MIX[2]
    mixed: numpy.ndarray = x ^ (x >> numpy.uint64(31))
    return mixed
