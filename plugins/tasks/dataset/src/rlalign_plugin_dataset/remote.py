"""Files that lie elsewhere: in a bucket, on the hub, on a web server; fsspec reads them, a range at a time."""

from __future__ import annotations

import contextlib
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from io import BufferedReader, RawIOBase
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, GetCoreSchemaHandler

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import MOST_FILES

T = TypeVar("T")
_URL = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
PAUSES = 1.0, 5.0, 25.0
"""Seconds before what failed is asked for again."""
LOOKS = 60.0
"""Seconds after which it is asked again whether a file is what it was."""
GAP = 2**12
"""Bytes between two ranges that are fetched with them, rather than ask twice."""
AHEAD = 2**26
"""Bytes that are fetched together at most."""
BUFFER = 2**22
"""Bytes that are read at once on the way through a file."""
VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "blob_id",
    "Content-MD5",
    "Digest",
    "sha",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "created",
)
"""What file systems call that by which they tell a file's contents from others."""


class Url(str):
    """The address of a file or a folder: `s3://bucket/data`."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(Annotated[str, AfterValidator(cls._checked)])

    @classmethod
    def _checked(cls, text: str) -> Url:
        if not is_url(text):
            raise ValueError("expected an address such as s3://bucket/data.jsonl")
        return cls(text)


def is_url(text: str) -> bool:
    """Whether a path is an address."""
    return _URL.match(text) is not None


def plain(url: str) -> str:
    """An address without what may be a key: who asks, and what a web server is asked beside a name."""
    before, mark, after = url.partition("://")
    home, slash, rest = after.partition("/")
    if before.lower() in ("http", "https"):
        rest = rest.partition("?")[0]
    return f"{before}{mark}{home.rpartition('@')[2]}{slash}{rest}"


class Remote:
    """A file elsewhere, with what is asked of a path."""

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs = fs
        self.path = path
        self._url = url
        self._looked = time.monotonic()
        self.has_version = False
        """Whether the file system tells its contents from others."""
        self._fetched: dict[tuple[int, int], bytes] = {}
        """What will be read next, by where it starts and how long it is."""
        self._pure = PurePosixPath(plain(path))
        self.name, self.suffix = self._pure.name, self._pure.suffix

    def __str__(self) -> str:
        return plain(self._url)

    def with_suffix(self, suffix: str) -> PurePosixPath:
        """Its path with another ending."""
        return self._pure.with_suffix(suffix)

    def open(self, mode: str = "rb") -> BufferedReader:
        """What it holds, to be read from any place."""
        raw = self.asked(lambda: self._fs.open(self.path, mode, block_size=BUFFER))
        return BufferedReader(_Raw(raw, self), BUFFER)

    def read(self, start: int, length: int) -> bytes:
        """Some of it."""
        if (start, length) in self._fetched:
            return self._fetched.pop((start, length))

        def read() -> bytes:
            found: bytes = self._fs.cat_file(self.path, start=start, end=start + length)
            if len(found) != length:  # a server may know no ranges
                raise OSError(f"{len(found):,} bytes came where {length:,} were asked for")
            return found

        return self.asked(read)

    def ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch these ranges together; what fails is fetched again when it is read."""
        self._fetched.clear()
        if len(ranges) < 2 or sum(length for _, length in ranges) > AHEAD:
            return
        blocks: list[list[int]] = []
        for start, length in sorted(ranges):
            if blocks and start <= blocks[-1][1] + GAP:
                blocks[-1][1] = max(blocks[-1][1], start + length)
            else:
                blocks.append([start, start + length])
        starts, ends = zip(*blocks, strict=True)
        with contextlib.suppress(Exception):
            found = self._fs.cat_ranges(
                [self.path] * len(blocks), list(starts), list(ends), on_error="return"
            )
            for start, length in ranges:
                at = bisect_right(starts, start) - 1
                data = found[at]
                if isinstance(data, bytes) and len(data) == ends[at] - starts[at]:
                    self._fetched[start, length] = data[start - starts[at] :][:length]

    def stamp(self) -> tuple[Any, ...]:
        """Its size, and what changes with its contents as far as the file system tells."""
        self._fs.invalidate_cache()
        self._looked = time.monotonic()
        about = self.asked(lambda: self._fs.info(self.path))
        if about.get("size") is None:
            raise ConfigError(
                f"{self}: the server does not say how large it is; fetch the file and name the copy"
            )
        versions = [str(about[name]) for name in VERSIONS if about.get(name) is not None]
        self.has_version = bool(versions)
        return about["size"], *versions

    def is_due(self) -> bool:
        """Whether it is some time ago that somebody looked."""
        return time.monotonic() > self._looked + LOOKS

    def asked(self, question: Callable[[], T]) -> T:
        """An answer; what fails for other reasons than that nothing is there is asked again."""
        for pause in (*PAUSES, None):
            try:
                return question()
            except (FileNotFoundError, PermissionError, ImportError, IsADirectoryError) as error:
                raise unreached(self._url, error) from error
            except Exception as error:
                if pause is None:
                    raise unreached(self._url, error) from error
                time.sleep(pause)
        raise AssertionError


class _Raw(RawIOBase):
    """A file of fsspec as Python's buffer wants one, asked again where the network fails."""

    def __init__(self, file: Any, of: Remote) -> None:
        self._file, self._of = file, of

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        place: int = self._file.seek(offset, whence)
        return place

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def readinto(self, buffer: Any) -> int:
        place = self._file.tell()

        def read() -> bytes:
            self._file.seek(place)
            found: bytes = self._file.read(len(buffer))
            return found

        data = self._of.asked(read)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def looked_up(fsspec: Any, url: str) -> tuple[Any, str, list[PurePosixPath] | None]:
    """The file system of an address, the path there, and of a folder all the files within, else None."""
    try:
        fs, path = fsspec.url_to_fs(url)
        fs.invalidate_cache()
        if fs.isfile(path):
            return fs, path, None
        there = [PurePosixPath(file) for file in fs.find(path)]
    except Exception as error:
        raise unreached(url, error) from error
    if not there:
        raise ConfigError(f"{plain(url)}: there is no such file or folder")
    if len(there) > MOST_FILES:
        raise ConfigError(
            f"{plain(url)}: holds more than {MOST_FILES:,} files; name the folder of the data alone"
        )
    return fs, path, there


def unreached(url: str, error: BaseException) -> ConfigError:
    """What is said where an address cannot be read, and what to do."""
    said = str(error).strip().partition("\n")[0].replace(url, plain(url))
    url = plain(url)
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{url}: there is no such file or folder ({said})")
    cure = "where there is no network, fetch the data first, and name the copy: `path: FOLDER`"
    if isinstance(error, ImportError | ValueError) and ("nstall" in said or "rotocol" in said):
        cure = "`pip install` what is named, or fetch the data first and name the copy: `path: FOLDER`"
    elif isinstance(error, PermissionError):
        cure = "is whoever runs this allowed to read it? fsspec takes keys as the service's own tools do"
    return ConfigError(f"{url}: cannot be read: {type(error).__name__}: {said}; {cure}")
