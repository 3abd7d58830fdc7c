"""Files and names of a run's folder that somebody may have changed: read, and followed, with suspicion."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlalign.errors import CheckpointError

StrPath = str | os.PathLike[str]

WRITTEN = (
    *(
        "pipeline.yaml",
        "lock.json",
        ".change",
        ".running",
        ".logs",
        "metrics.jsonl",
        "samples.jsonl",
        "learned.jsonl",
        "dropped.jsonl",
        "signatures.jsonl",
    ),
    *("inexact.jsonl", "events", "rows", "remembered", "columns", "checkpoints", "model", "bad-batch"),
    "served",
)
"""All that a run writes in its folder. Whatever else lies there is the user's, and is left alone."""
SHARED = ("checkpoints", "model")
"""Those whose files are never changed once they are written: they may have further hard links."""
LARGEST = 2**30
"""Bytes of the largest JSON that is read at once: the state of components and of a draw."""

_TEMPORARY = re.compile(r"\.tmp-.+-[1-9]\d*-[0-9a-f]{8}")


def beside(path: Path) -> Path:
    """A name beside `path` that nobody has: what is made there and then renamed is whole or not there."""
    return path.with_name(f".tmp-{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def sweep(folder: Path) -> None:
    """Delete what killed writers left in a folder of ours: real files and folders that `beside` named."""
    for entry in _entries(folder):
        if _TEMPORARY.fullmatch(entry.name) and not entry.is_symlink():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.is_file():
                os.unlink(entry)


def inside(folder: Path, name: object) -> Path:
    """The file of this name in a folder, where a file of the run says the name; never one that lies elsewhere."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if not all(part and part not in (".", "..") and part.isprintable() for part in parts):
        raise CheckpointError(
            f"{folder}: a file of this run names {str(name)[:80]!r}, which is no file in its folder: it was edited. "
            "Put the run back from a copy, or start it again."
        )
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise CheckpointError(_strange(path, "a link"))
    return path


def require_plain(run: Path, *, to_write: bool) -> None:
    """Refuse a run that would lead elsewhere: links, devices and pipes where a run writes files and folders.

    A file that will be changed where it stands must have no other name either: `cp -l` would make it change twice.
    """
    for entry in _all(run):
        kind = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(kind.st_mode):
            continue
        if not stat.S_ISREG(kind.st_mode):
            found = "a link" if stat.S_ISLNK(kind.st_mode) else "a pipe or a device"
            raise CheckpointError(_strange(Path(entry), found))
        if to_write and kind.st_nlink > 1 and Path(entry).relative_to(run).parts[0] not in SHARED:
            raise CheckpointError(
                _strange(Path(entry), "a file that has another name elsewhere (a hard link)")
            )


def _all(run: Path) -> Iterator[os.DirEntry[str]]:
    folders = [[entry for entry in _entries(run) if entry.name in WRITTEN]]
    while folders:
        for entry in folders.pop():
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(list(_entries(Path(entry))))
                else:
                    entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # a run that goes on has just deleted it
                continue
            yield entry


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return


def _strange(path: Path, found: str) -> str:
    return (
        f"{path}: is {found}, which no run makes; what is written there would change something else. "
        "Put the file or folder itself in its place: `cp -rL` copies a run without links."
    )


def read_bytes(path: Path) -> bytes:
    """What a file of a run holds, if it is a file, and of a size to be read at once."""
    try:
        kind = path.lstat()
        if not stat.S_ISREG(kind.st_mode):
            raise CheckpointError(f"{path}: is no file; put the file back that was there.")
        if kind.st_size > LARGEST:
            raise CheckpointError(f"{path}: holds {kind.st_size} bytes, more than {LARGEST}: it was edited.")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None


def read_json(path: Path, shape: Any, remedy: str = "") -> Any:
    """A JSON file that rlalign wrote, of the shape (a type) that it wrote."""
    try:
        found = json.loads(read_bytes(path))
        require_shape(found, shape, path)
    except CheckpointError as error:
        wrong = str(error)
    except (ValueError, RecursionError):
        wrong = f"{path}: is no JSON: it is cut short or edited."
    else:
        return found
    raise CheckpointError(f"{wrong} {remedy}".strip())


def require_shape(found: Any, shape: Any, where: Path) -> None:
    """Refuse what is not of a shape, which is a type or a model of pydantic's."""
    try:
        _checker(shape).validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{where}: is not what was written ({f'{place}: ' if place else ''}{first['msg']}): it was edited."
        ) from None


@cache
def _checker(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)
