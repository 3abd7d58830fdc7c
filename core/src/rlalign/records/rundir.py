"""A run's folder: how it is named, created, found again, and kept to one process.

runs/<name>/
    pipeline.yaml  lock.json                what runs, and with what
    .change                                 both anew, while they are rewritten (`rewriting.py`)
    .running                                the process that writes the run, while it does (`writer.py`)
    metrics.jsonl  samples.jsonl
    learned.jsonl  events/                  logs (`logs.py`)
    checkpoints/   columns/       rows/     checkpoints (`checkpoint.py`) and what belongs to them
    served/                                 what served rewards answered (`answers.py`), and printed
    model/                                  the exported model
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlalign.errors import ConfigError, RLAlignError
from rlalign.records.files import StrPath, beside, require_plain, sweep
from rlalign.records.writer import hold, process
from rlalign.world.ranks import here

_log = logging.getLogger("rlalign")

REQUIRED_FILES = ("pipeline.yaml", "lock.json")
"""The files that make a folder a run."""


class RunDir:
    """An existing run, and, unless opened to look only, the right to be its one writer."""

    def __init__(self, path: StrPath, held: tuple[int, bytes] | None = None) -> None:
        self.path = Path(path)
        self._stays = self.path.absolute()
        """The same wherever this process works."""
        self._held = held
        """The open `.running`, and what this process wrote there."""

    @classmethod
    def create(
        cls, root: StrPath, stem: str, name: str | None = None, *, pipeline: str, lock: Mapping[str, Any]
    ) -> RunDir:
        """Make `root/name`, or without a name `root/stem`, `root/stem-2`, …: whole or not at all."""
        root = Path(root)
        if name is not None and (not name or name != Path(name).name or name.startswith(".")):
            raise ConfigError(f"run name {name!r}: a name cannot be empty, start with a dot or hold a slash")
        if name is None and (not stem or stem.startswith(".")):
            raise ConfigError(
                f"a run is called after its file, and {stem!r} is no name; rename the file, or say --name"
            )
        if name is not None and (root / name).exists():
            raise ConfigError(_taken(root / name))
        building = beside(root / (name or stem))
        held = None
        try:
            building.mkdir(parents=True)
            write_atomic(building / "pipeline.yaml", pipeline)
            write_atomic(building / "lock.json", lock_text(lock))
            held = hold(building)  # it stays with the open file when the folder is renamed
            path = _claim(building, root, stem, name)
            sync(root)
        except BaseException as error:
            shutil.rmtree(building, ignore_errors=True)
            if held is not None:
                os.close(held[0])
            if isinstance(error, OSError):
                raise ConfigError(
                    f"{root}: no run can be created here: {error.strerror}. "
                    "Choose another place for runs, or fix this one."
                ) from error
            raise
        return cls(path, held)

    @classmethod
    def open(cls, path: StrPath, *, exclusive: bool = True) -> RunDir:
        """A run that exists: to go on with it, or (`exclusive=False`) to look at it."""
        path = Path(path)
        run, at = checkpoint_of(path)
        if at is not None:
            raise ConfigError(
                f"{path}: is a checkpoint. A run goes on from its last one, `rlalign run --resume {run}`, or with "
                "`--previous` from the one before; `eval`, `sample` and `export` take any"
            )
        if not path.is_dir():
            raise ConfigError(f"{path}: there is no such run.{_others(path.parent)}")
        for name in REQUIRED_FILES:
            if not (path / name).is_file():
                raise ConfigError(f"{path}: is no run of rlalign: it holds no {name}.{_others(path.parent)}")
        note_others(path)
        require_plain(path, to_write=exclusive)
        if not exclusive:
            return cls(path)
        held = hold(path)
        for folder in (path, path / "rows", path / "bad-batch", *(path / "columns").glob("*")):
            sweep(folder)
        return cls(path, held)

    def close(self) -> None:
        """Let others write the run."""
        if self._held is not None:
            os.close(self._held[0])
            self._held = None

    def require_mine(self) -> None:
        """Stop unless the folder at this path is still the one that this process writes, and nobody else does.

        It may have been moved, and another run have its name now; and where files cannot be locked, two processes
        may have begun to write: the one that came last goes on.
        """
        if self._held is None:
            return
        held, token = self._held
        try:
            there = os.open(self._stays / ".running", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            raise RLAlignError(_moved(self.path)) from None
        try:
            if not os.path.sameopenfile(held, there):
                raise RLAlignError(_moved(self.path))
            found = os.pread(there, 1000, 0)
        finally:
            os.close(there)
        if found != token:
            raise RLAlignError(
                f"{self.path}: {process(found)} writes this run now, so this one has stopped and has written nothing "
                "since. Let the other finish; files cannot be locked here, so see that each run has one process."
            )

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def pipeline(self) -> Path:
        return self.path / "pipeline.yaml"

    @property
    def lock(self) -> Path:
        return self.path / "lock.json"

    @property
    def change(self) -> Path:
        return self.path / ".change"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def columns(self) -> Path:
        return self.path / "columns"

    @property
    def served(self) -> Path:
        return self.path / "served"

    @property
    def rows(self) -> Path:
        return self.path / "rows"

    @property
    def model(self) -> Path:
        return self.path / "model"


def led(begin: Callable[[], RunDir]) -> RunDir:
    """A run that rank 0 creates or opens to write it, and that all see."""
    held: list[RunDir] = []

    def begun() -> str:
        held.append(begin())
        return str(held[0].path)

    path = Path(here().lead(begun, "opening the run"))

    def look() -> None:
        if not is_run(path):
            raise RLAlignError(f"{path}: this run is not here; all its processes need one file system")

    here().gather(look, "looking for the run")
    return held[0] if held else RunDir(path)


def latest(root: StrPath, stem: str) -> Path | None:
    """The run of this stem that was created last: the one with the highest number."""
    runs = {n: path for n, path in _numbered(Path(root), stem).items() if is_run(path)}
    return runs[max(runs)] if runs else None


def is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in REQUIRED_FILES)


def checkpoint_of(
    path: Path, at: int | Literal["best"] | None = None
) -> tuple[Path, int | Literal["best"] | None]:
    """The run, and the checkpoint in it, that a path means: a run's own, or that of a checkpoint's folder."""
    run, named = path.absolute().parent.parent, re.fullmatch(r"[0-9]{8,18}", path.name)
    if not named or path.absolute().parent.name != "checkpoints" or not is_run(run):
        return path, at
    if at is not None:
        raise ConfigError(f"{path}: is a checkpoint already; leave out --at, or name the run")
    return path.parent.parent, int(named[0])


_noted: set[Path] = set()


def note_others(folder: Path) -> None:
    """Say once where others can change a run or a model: what it says and holds is then theirs."""
    if (real := folder.resolve()) in _noted:
        return
    _noted.add(real)
    for path in (folder, *(folder / name for name in (*REQUIRED_FILES, "checkpoints", "config.json"))):
        if path.exists():
            about = path.stat()
            if about.st_uid != os.getuid():
                _log.warning("%s: belongs to another user (%s), who can change it", path, about.st_uid)
                return
            if about.st_mode & stat.S_IWOTH:
                _log.warning("%s: whoever uses this machine can change it; `chmod -R o-w %s`", path, folder)
                return


def write_atomic(path: StrPath, text: str | Iterable[str]) -> None:
    """Replace a file's text, given whole or in pieces.

    Whoever reads it, and whenever the machine stops, finds the old or the new.
    """
    path = Path(path)
    temporary = beside(path)
    with open(temporary, "x", encoding="utf-8") as file:
        try:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync(path.parent)


def lock_text(lock: Mapping[str, Any]) -> str:
    """A lock as it is written down."""
    return json.dumps(lock, indent=1) + "\n"


def sync(path: StrPath) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _numbered(root: Path, stem: str) -> dict[int, Path]:
    """The stem's folders by number; `stem` itself is number 1."""
    pattern = re.compile(re.escape(stem) + r"(?:-([1-9]\d*))?")
    entries = root.iterdir() if root.is_dir() else ()
    matches = ((pattern.fullmatch(entry.name), entry) for entry in entries)
    return {int(match[1] or 1): entry for match, entry in matches if match}


def next_name(root: Path, stem: str) -> str:
    """What the next run is called that has no name of its own."""
    # Above the highest, not the first free number: `latest` is then what its name says.
    number = 1 + max(_numbered(root, stem), default=0)
    return stem if number == 1 else f"{stem}-{number}"


def _claim(building: Path, root: Path, stem: str, name: str | None) -> Path:
    """Give a finished folder its name. The rename settles who gets a name that two processes want."""
    while True:
        path = root / (name or next_name(root, stem))
        try:
            os.rename(building, path)
        except OSError:
            if not path.exists():
                raise
            if name is not None:
                raise ConfigError(_taken(path)) from None
        else:
            return path


def _moved(path: Path) -> str:
    return (
        f"{path}: the run's folder was moved or deleted while it ran, so it stopped and wrote nothing more. Where the "
        "folder lies now, go on from its last checkpoint with `rlalign run --resume`."
    )


def _taken(path: Path) -> str:
    choose = "choose another name, or none: then a number is added."
    if is_run(path):
        return f"{path}: this run exists. Go on with it by `rlalign run --resume {path}`, or {choose}"
    return f"{path}: exists and is no run of rlalign. Move it away, or {choose}"


def _others(root: Path) -> str:
    runs = sorted(path.name for path in root.iterdir() if is_run(path)) if root.is_dir() else []
    return f" Runs in {root}: {', '.join(runs)}." if runs else ""
