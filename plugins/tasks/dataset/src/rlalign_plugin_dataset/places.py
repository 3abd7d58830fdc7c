"""Where examples stand: 48 bytes each, in memory, or of large data in files that all processes of a machine map."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy

ROW = numpy.dtype(
    [
        ("start", "<i8"),
        ("length", "<i8"),
        ("number", "<i8"),
        ("table", "<i4"),
        ("nth", "<i4"),
        ("part", "<i4"),
    ]
)
"""Which of the tables, what its `read` takes, how messages name the row, and which of the row's examples."""
KEY, ANSWERS = numpy.dtype("<u8"), numpy.dtype("<i4")
AT_ONCE = 2**16
"""Values that are kept as Python's before they are written."""
ABOUT = "about.json"


class Places(NamedTuple):
    """The examples of a split."""

    rows: numpy.ndarray
    answers: numpy.ndarray
    """How many logged responses each has."""
    keys: numpy.ndarray
    """What each is, wherever it stands: a hash of its id, of its prompt where rows are gathered, else of its texts."""

    def take(self, order: numpy.ndarray) -> Places:
        """Some of them, or all in another order."""
        return Places(*(values[order] for values in self))


@dataclass
class Found:
    """What a walk over all rows found."""

    splits: Mapping[str, Places]
    count: int
    """Examples of all splits, and those that were left out."""
    said: Sequence[str]
    """What there is to tell of them."""
    digests: Sequence[str] | None = None
    """The tables' hashes, where the walk took them too."""


class Column:
    """Values that are added one by one, to a file or in memory."""

    def __init__(self, dtype: numpy.dtype, path: Path | None) -> None:
        self._dtype = dtype
        self._path = path
        self._file: Any = io.BytesIO() if path is None else path.open("xb")
        self._some: list[Any] = []

    def add(self, value: Any) -> None:
        self._some.append(value)
        if len(self._some) >= AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._file.write(numpy.array(self._some, dtype=self._dtype).tobytes())
        self._some.clear()

    def whole(self) -> numpy.ndarray:
        """All of them; none can be added any more."""
        self._flush()
        if self._path is None:
            return numpy.frombuffer(self._file.getbuffer(), self._dtype)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return _mapped(self._path, self._dtype)


class Growing:
    """The places of a split while its rows are walked over."""

    def __init__(self, folder: Path | None, name: str) -> None:
        parts = ((ROW, "rows"), (ANSWERS, "answers"), (KEY, "keys"))
        self._columns = [Column(d, None if folder is None else folder / f"{name}.{n}") for d, n in parts]
        self.size = 0

    def add(self, row: tuple[int, ...], answers: int, key: int) -> None:
        for column, value in zip(self._columns, (row, answers, key), strict=True):
            column.add(value)
        self.size += 1

    def whole(self) -> Places:
        return Places(*(column.whole() for column in self._columns))


def _mapped(path: Path, dtype: numpy.dtype) -> numpy.ndarray:
    if path.stat().st_size == 0:  # which cannot be mapped
        return numpy.empty(0, dtype)
    return numpy.memmap(path, dtype, mode="r").view(numpy.ndarray)


# -- kept for the next process ------------------------------------------------------------------------------


def write_about(folder: Path, found: Found) -> None:
    """Complete a folder that holds the places of each split."""
    about = {
        "splits": {name: len(places.rows) for name, places in found.splits.items()},
        "count": found.count,
        "said": list(found.said),
        "digests": found.digests,
    }
    with (folder / ABOUT).open("x", encoding="utf-8") as file:
        json.dump(about, file)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Found | None:
    """What such a folder holds; None if it is not whole."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        splits = {
            name: Places(
                *(
                    _mapped(folder / f"{i}.{kind}", dtype)
                    for dtype, kind in ((ROW, "rows"), (ANSWERS, "answers"), (KEY, "keys"))
                )
            )
            for i, name in enumerate(about["splits"])
        }
        sizes = {name: [len(values) for values in places] for name, places in splits.items()}
        whole = sizes == {name: [size] * 3 for name, size in about["splits"].items()}
        said, digests = about["said"], about["digests"]
        whole = (
            whole and isinstance(about["count"], int) and all(isinstance(t, str) for t in [*said, *digests])
        )
        return Found(splits, about["count"], said, digests) if whole and digests else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def place_of(said: Any) -> Path:
    """The folder for what is described; it changes with the code that reads rows. OSError: nobody can have it."""
    text = json.dumps([said, _code()], sort_keys=True, default=str)
    try:
        return cache_folder() / hashlib.sha256(text.encode()).hexdigest()[:32]
    except RuntimeError as error:  # no home
        raise OSError(None, str(error)) from error


def not_kept(where: object, what: str, why: object) -> None:
    """Warn that an index cannot be kept."""
    warnings.warn(
        f"{where}: what is known of {what} cannot be kept here ({why}), so each process holds it in its memory and "
        "walks over all rows; name another folder by the variable RLALIGN_CACHE",
        stacklevel=4,
    )


def cache_folder() -> Path:
    """Where indexes lie, for all runs of a user: `$RLALIGN_CACHE`, else `~/.cache/rlalign`."""
    return cache_name().expanduser() / "index"


def cache_name() -> Path:
    """The same as it is said, a `~` for the home."""
    own, shared = os.environ.get("RLALIGN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or "~/.cache") / "rlalign"


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
