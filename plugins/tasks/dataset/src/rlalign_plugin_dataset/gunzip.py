"""Files packed by gzip, read from any place and never unpacked whole."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from io import SEEK_CUR, SEEK_END, BufferedReader, RawIOBase
from typing import Any, BinaryIO, NamedTuple

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import LARGE, MOST_GZIPPED

PIECE, BUFFER = 2**14, 2**16
"""Bytes of the packed file and of the unpacked one that are read at once."""
BETWEEN, MOST_MARKS = 2**18, 512
"""Unpacked bytes from one mark to the next, twice as many each time there are more marks than this: 60 kB each."""


class Mark(NamedTuple):
    """Where unpacking can begin."""

    at: int
    packed: int
    """The place in the packed file."""
    state: Any
    """The unpacker there, of which copies go on; None: one that is new."""


class Marks:
    """Marks set on the way through a packed file, for all who read it."""

    def __init__(self) -> None:
        self.all = [Mark(0, 0, None)]
        self._between = BETWEEN

    def before(self, at: int) -> Mark:
        """The last one at or before a place."""
        return self.all[bisect_right(self.all, at, key=lambda mark: mark.at) - 1]

    def due(self, at: int) -> bool:
        """Whether one is set here."""
        return at >= self.all[-1].at + self._between

    def add(self, mark: Mark) -> None:
        self.all.append(mark)
        if len(self.all) > MOST_MARKS:
            del self.all[1::2]
            self._between *= 2


def unpacked(file: BinaryIO, name: str, marks: Marks | None = None) -> BufferedReader:
    """What a packed file holds."""
    return BufferedReader(_Gunzipped(file, name, marks or Marks()), BUFFER)


class _Gunzipped(RawIOBase):
    def __init__(self, file: BinaryIO, name: str, marks: Marks) -> None:
        self._file, self._name, self._marks = file, name, marks
        self._most = max(LARGE, MOST_GZIPPED * file.seek(0, SEEK_END))
        self._go_on_from(marks.all[0])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == SEEK_END:
            raise OSError("the end of a packed file is not known")
        wanted = offset + self._at if whence == SEEK_CUR else offset
        mark = self._marks.before(wanted)
        if not mark.at <= self._at <= wanted:
            self._go_on_from(mark)
        while self._at < wanted and self._next(min(BUFFER, wanted - self._at)):
            pass
        return self._at

    def _go_on_from(self, mark: Mark) -> None:
        self._at = mark.at
        self._file.seek(mark.packed)
        self._rest = b""
        """Packed bytes that were read and not unpacked."""
        self._state = _new() if mark.state is None else mark.state.copy()
        self._begun = mark.state is not None

    def _next(self, most: int) -> bytes:
        """The next bytes, at most so many; none at the end. Packed files that stand one after the other are one."""
        while True:
            self._rest = self._rest or self._file.read(PIECE)
            ended = not self._rest
            if not self._begun:
                self._rest = self._rest.lstrip(b"\0")  # what fills a tape's last block
                if ended:
                    return b""
                if not self._rest:
                    continue
                self._begun = True
            try:
                data: bytes = self._state.decompress(self._rest, most)
            except zlib.error as error:
                raise ConfigError(
                    f"{self._name}: the packed file is damaged ({error}), or no gzip file; fetch it again"
                ) from None
            self._rest = self._state.unconsumed_tail
            if self._state.eof:
                self._rest, self._state, self._begun = self._state.unused_data, _new(), False
            elif ended and not data:
                raise ConfigError(f"{self._name}: the packed file ends in its middle; fetch it again")
            if data:
                return self._arrived(data)

    def _arrived(self, data: bytes) -> bytes:
        self._at += len(data)
        if self._at > self._most:
            raise ConfigError(
                f"{self._name}: unpacks to more than {self._most:,} bytes, which is more than {MOST_GZIPPED} times its "
                "size: no data does; gunzip it, and look what it holds"
            )
        if self._begun and self._marks.due(self._at):
            packed = self._file.tell() - len(self._rest)
            self._marks.add(Mark(self._at, packed, self._state.copy()))
        return data


def _new() -> Any:
    """An unpacker that reads the head and the checksum of gzip."""
    return zlib.decompressobj(wbits=31)
