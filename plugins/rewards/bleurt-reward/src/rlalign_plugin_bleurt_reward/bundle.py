"""Reads TensorFlow's checkpoints, a `.index` beside `.data-…` files, without TensorFlow.

The index is a sorted table as LevelDB writes it: blocks of entries with shared prefixes, a checksum behind each, and a
footer that says where the blocks are. Its values are small protocol buffers, which say where the tensors lie.
Files may come from anybody: every length and offset is compared with what is there before it is followed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from rlalign import ConfigError
from rlalign.data.limits import require_file
from rlalign_plugin_bleurt_reward.crc import crc32c, masked
from rlalign_plugin_bleurt_reward.snappy import decompressed

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5
"""Bytes behind each block: its kind, and a checksum."""
INDEX_BYTES = 2**22
"""Of an index, and of a block of one unpacked; the largest published model has 520 tensors, in 50 KB."""
ENTRIES = 20_000
"""Tensors of a checkpoint."""
NAME_BYTES = 1_000
"""The longest name of a tensor."""
SHARDS = 1_000
"""Files that the tensors of a checkpoint are spread over."""
AXES = 8
"""Of a tensor."""
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}
"""TensorFlow's numbers of types of fixed size that torch has too."""


class CheckpointError(ConfigError):
    """A checkpoint is damaged, or not what its name says."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    start: int
    size: int
    crc: int


class Bundle:
    """The tensors of a checkpoint: `prefix` is its path without `.index`."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = prefix.with_name(f"{prefix.name}.index")
        if not self.index.exists():
            raise CheckpointError(f"{self.index}: there is no such file; the checkpoint is incomplete")
        require_file(self.index, INDEX_BYTES)
        try:
            self.shards, self.entries = _read(self.index.read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{self.index}: is damaged, or no index of a checkpoint: {error}") from None
        try:
            _apart(self.entries)
        except ValueError as error:
            raise CheckpointError(f"{self.index}: {error}") from None

    def shard(self, number: int) -> Path:
        """A file with tensors."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{number:05d}-of-{self.shards:05d}")

    def tensor(self, name: str) -> Tensor:
        """A tensor, read from its file and compared with its checksum."""
        entry = self.entries[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{self.index}: `{name}` is of TensorFlow's type {entry.dtype}, not of numbers"
            )
        if math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise CheckpointError(
                f"{self.index}: `{name}` takes {entry.size} bytes; {list(entry.shape)} numbers of {dtype} take others"
            )
        path = self.shard(entry.shard)
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such file, and `{name}` lies in it")
        require_file(path)
        if entry.start + entry.size > path.stat().st_size:
            raise CheckpointError(
                f"{path}: holds {path.stat().st_size} bytes, and `{name}` ends at {entry.start + entry.size}: "
                "it is cut short"
            )
        raw = numpy.fromfile(path, numpy.uint8, entry.size, offset=entry.start)
        if len(raw) != entry.size or masked(crc32c(raw)) != entry.crc:
            raise CheckpointError(f"{path}: is damaged: the checksum of `{name}` is another one")
        if not entry.size:
            return torch.zeros(entry.shape, dtype=dtype)
        return torch.from_numpy(raw).view(dtype).reshape(entry.shape)


def _apart(entries: dict[str, Entry]) -> None:
    """No byte belongs to two tensors: so that a small file cannot fill the memory."""
    last, end = "", (0, 0)
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].start)):
        if entry.size and (entry.shard, entry.start) < end:
            raise ValueError(f"`{last}` and `{name}` lie on the same bytes")
        if entry.size:
            last, end = name, (entry.shard, entry.start + entry.size)


# -- the table ------------------------------------------------------------------------------------------------------


def _read(data: bytes) -> tuple[int, dict[str, Entry]]:
    """How many files there are, and what lies where in them."""
    if len(data) < FOOTER:
        raise ValueError("it is cut short")
    if struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("it does not end as one does (wrong magic number)")
    at, handle = len(data) - FOOTER, []
    for _ in range(4):
        number, at = _varint(data, at, len(data) - 8)
        handle.append(number)
    found: dict[str, Entry] = {}
    shards, end, last = 0, 0, b""
    first = True
    for _, value in _entries(_block(data, handle[2], handle[3])):
        start, at = _varint(value, 0, len(value))
        size, _ = _varint(value, at, len(value))
        if start < end:
            raise ValueError("its blocks overlap")
        end = start + size + TRAILER
        for key, record in _entries(_block(data, start, size)):
            if not first and key <= last:
                raise ValueError("its names are not in order")
            last = key
            if first and key:
                raise ValueError("it has no header")
            if first:
                shards, first = _header(record), False
                continue
            if len(found) == ENTRIES:
                raise ValueError(f"it names more than {ENTRIES} tensors")
            name = key.decode()
            found[name] = _entry(name, record, shards)
    if first:
        raise ValueError("it is empty")
    return shards, found


def _block(data: bytes, start: int, size: int) -> bytes:
    if start + size + TRAILER > len(data) - FOOTER:
        raise ValueError("a block lies beyond its end")
    content, kind = data[start : start + size], data[start + size]
    (crc,) = struct.unpack_from("<I", data, start + size + 1)
    if masked(crc32c(data[start : start + size + 1])) != crc:
        raise ValueError("the checksum of a block is another one")
    if kind > 1:
        raise ValueError(f"a block is compressed in a way unknown here ({kind})")
    return decompressed(content, INDEX_BYTES) if kind else content


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block. Each key shares its beginning with the one before."""
    if len(block) < 4:
        raise ValueError("a block is cut short")
    end = len(block) - 4 * (struct.unpack("<I", block[-4:])[0] + 1)
    if end < 0:
        raise ValueError("a block says too many restarts")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at, end)
        own, at = _varint(block, at, end)
        size, at = _varint(block, at, end)
        if shared > len(key) or shared + own > NAME_BYTES or at + own + size > end:
            raise ValueError("an entry goes beyond its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + size]
        at += own + size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("a number is cut short")
        byte = data[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")


# -- protocol buffers -----------------------------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, len(data))
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at, len(data))
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at, len(data))
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field is of kind {kind}")
        if at + size > len(data):
            raise ValueError("a field is cut short")
        piece, at = data[at : at + size], at + size
        yield tag >> 3, piece if kind == 2 else int.from_bytes(piece, "little")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a field holds bytes in place of a number")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field holds a number in place of a message")
    return value


def _header(record: bytes) -> int:
    said = dict(_fields(record))
    shards = _number(said.get(1, 0))
    if not 0 < shards <= SHARDS:
        raise ValueError(f"it says {shards} files of tensors; expected 1 to {SHARDS}")
    if said.get(2, 0):
        raise ValueError("its numbers are big-endian")
    return shards


def _entry(name: str, record: bytes, shards: int) -> Entry:
    said = dict(_fields(record))
    if 7 in said:
        raise ValueError(f"`{name}` is stored in slices")
    shape = []
    for field, value in _fields(_message(said.get(2, b""))):
        if field == 3 and value:
            raise ValueError(f"`{name}` has no shape")
        if field == 2:
            shape.append(_number(dict(_fields(_message(value))).get(1, 0)))
    dtype, shard, start, size, crc = (_number(said.get(field, 0)) for field in (1, 3, 4, 5, 6))
    if shard >= shards:
        raise ValueError(f"`{name}` lies in file {shard} of {shards}")
    if len(shape) > AXES or start + size >= 2**63 or math.prod(max(axis, 1) for axis in shape) >= 2**63:
        raise ValueError(f"the shape or place of `{name}` cannot be")
    return Entry(dtype, tuple(shape), shard, start, size, crc)
