"""A finished run without what only going on with it needs: its model, pipeline, lock and logs stay."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rlalign.errors import ConfigError
from rlalign.records.files import StrPath, beside
from rlalign.records.listing import files_in
from rlalign.records.rundir import RunDir, sync
from rlalign.records.writer import is_written

DELETED = ("checkpoints", "remembered", "columns", "bad-batch", "served")
"""All of these folders. `rows` go only where that is said: another run may learn from them."""


def clean(folder: StrPath, *, rows: bool = False, dry_run: bool = False) -> dict[str, int]:
    """Delete a finished run's checkpoints and what belongs to them, and with `rows` the responses it kept.

    Says how many bytes each folder frees. The run is this process's meanwhile; one that another process writes, or
    that is not finished, is refused. Killed on the way, it has deleted whole folders or set them aside, and
    cleaning again deletes those.
    """
    with RunDir.open(folder, exclusive=not dry_run) as run:
        if dry_run and is_written(run.path):
            raise ConfigError(f"{run.path}: a process is writing this run. Wait for it, or stop it.")
        _require_finished(run)
        names = [name for name in (*DELETED, *(["rows"] if rows else [])) if (run.path / name).is_dir()]
        freed = _freed(run.path / name for name in names)
        for name in () if dry_run else names:
            run.require_mine()
            aside = beside(
                run.path / name
            )  # a run has all of a folder or none; opening it deletes what is left
            os.rename(run.path / name, aside)
            sync(run.path)
            shutil.rmtree(aside)
        return dict(zip(names, freed, strict=True))


def _require_finished(run: RunDir) -> None:
    if not run.model.is_dir():
        raise ConfigError(
            f"{run.path}: this run is not finished, and without its checkpoints it could not go on; finish it with "
            f"`rlalign run --resume {run.path}`, or delete the whole folder"
        )
    if not any(file.name != "README.md" and about.st_size for file, about in files_in(run.model)):
        raise ConfigError(
            f"{run.model}: holds no model, so the checkpoints are all that is left of it; they stay. "
            "Export it from them with `rlalign export`"
        )


def _freed(folders: Iterable[Path]) -> list[int]:
    """What deleting these folders one after the other frees, each: a file counts where its last name goes."""
    names: Counter[tuple[int, int]] = Counter()
    freed = []
    for folder in folders:
        size = 0
        for _, about in files_in(folder):
            names[about.st_dev, about.st_ino] += 1
            if names[about.st_dev, about.st_ino] == about.st_nlink:
                size += about.st_blocks * 512
        freed.append(size)
    return freed
