"""Decompression of raw snappy, the format in which blocks of a checkpoint's index may be compressed."""

from __future__ import annotations


def decompressed(data: bytes, most: int) -> bytes:
    """What was compressed. Raises ValueError for what is none, or says that it is longer than `most` bytes."""
    size, at = _length(data)
    if size > most:
        raise ValueError(f"says that it unpacks to {size} bytes, more than {most}")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        kind, at = tag & 3, at + 1
        if kind == 0:
            count = (tag >> 2) + 1
            if count > 60:
                wide = count - 60
                count, at = int.from_bytes(_taken(data, at, wide), "little") + 1, at + wide
            if len(out) + count > size:
                raise ValueError("unpacks to more than it says")
            out += _taken(data, at, count)
            at += count
            continue
        if kind == 1:
            count, wide = (tag >> 2 & 7) + 4, 1
            back = (tag >> 5) << 8 | _taken(data, at, wide)[0]
        else:
            count, wide = (tag >> 2) + 1, 2 if kind == 2 else 4
            back = int.from_bytes(_taken(data, at, wide), "little")
        at += wide
        if not 0 < back <= len(out):
            raise ValueError("copies from before its start")
        if len(out) + count > size:
            raise ValueError("unpacks to more than it says")
        start = len(out) - back
        piece = out[start : start + count]
        out += (piece * (count // len(piece) + 1))[:count]  # a copy may overlap what it makes
    if len(out) != size:
        raise ValueError("unpacks to less than it says")
    return bytes(out)


def _length(data: bytes) -> tuple[int, int]:
    value = 0
    for at, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return value, at + 1
    raise ValueError("does not say how long it is")


def _taken(data: bytes, start: int, count: int) -> bytes:
    if start + count > len(data):
        raise ValueError("is cut short")
    return data[start : start + count]
