"""CRC-32C (Castagnoli) of large arrays: in numpy some fifty times as fast as a loop over bytes."""

from __future__ import annotations

from functools import lru_cache

import numpy

CHUNK = 2**22
"""Bytes taken at a time."""
POLYNOMIAL = 0x82F63B78

Words = numpy.ndarray
"""Registers, uint32."""
SHORT = 256
"""Bytes for which a loop is the faster way."""


def _tables() -> tuple[Words, Words]:
    byte = numpy.arange(256, dtype=numpy.uint32)
    for _ in range(8):
        byte = numpy.where(byte & 1, (byte >> 1) ^ numpy.uint32(POLYNOMIAL), byte >> 1)
    pair = numpy.arange(65536, dtype=numpy.uint32)
    for _ in range(2):
        pair = byte[pair & 0xFF] ^ (pair >> 8)
    return byte, pair


_BYTE, _PAIR = _tables()
"""What one byte, and what two bytes, do to a register."""
_LOOKUP: list[int] = _BYTE.tolist()
_PLACES = numpy.arange(32, dtype=numpy.uint32)
_BITS = numpy.uint32(1) << _PLACES


def crc32c(data: bytes | numpy.ndarray) -> int:
    """The checksum of bytes."""
    array = numpy.frombuffer(data, numpy.uint8) if isinstance(data, bytes) else data
    found = 0xFFFFFFFF
    first = len(array) % CHUNK
    if first:
        found = _advanced(found, first) ^ _register(array[:first])
    for start in range(first, len(array), CHUNK):
        found = _advanced(found, CHUNK) ^ _register(array[start : start + CHUNK])
    return found ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """As files hold it: turned by 15 bits, and a constant added."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _register(array: numpy.ndarray) -> int:
    """What bytes make of a register of zero: each lane by itself, then neighbours joined until one is left."""
    if len(array) <= SHORT:
        register = 0
        for byte in array.tobytes():
            register = _LOOKUP[(register ^ byte) & 0xFF] ^ register >> 8
        return register
    width = 2  # bytes of a lane; zeros in front change nothing in a register of zero
    while 16 * width * width < len(array):
        width *= 2
    lanes = 1
    while lanes * width < len(array):
        lanes *= 2
    padded = numpy.zeros(lanes * width, numpy.uint8)
    padded[len(padded) - len(array) :] = array
    columns = numpy.ascontiguousarray(padded.view("<u2").reshape(lanes, width // 2).T).astype(numpy.uint32)
    crc = numpy.zeros(lanes, numpy.uint32)
    for column in columns:
        crc ^= column
        crc = _PAIR[crc & 0xFFFF] ^ (crc >> 16)
    while len(crc) > 1:
        crc = _apply(_zeros(width), crc[::2]) ^ crc[1::2]
        width *= 2
    return int(crc[0])


def _advanced(crc: int, zeros: int) -> int:
    return int(_apply(_zeros(zeros), numpy.asarray([crc], numpy.uint32))[0])


@lru_cache(64)
def _zeros(count: int) -> Words:
    """What so many zero bytes do to a register, as the images of its 32 bits."""
    power, found = _BYTE[_BITS & 0xFF] ^ (_BITS >> 8), _BITS
    while count:
        if count & 1:
            found = _apply(power, found)
        power, count = _apply(power, power), count >> 1
    return found


def _apply(operator: Words, crc: Words) -> Words:
    set_bits = crc >> _PLACES[:, None] & numpy.uint32(1)
    found: Words = numpy.bitwise_xor.reduce(set_bits * operator[:, None], axis=0)
    return found
