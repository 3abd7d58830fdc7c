"""Responses as logged data: those that a run kept, read up to its last checkpoint, and how they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlalign.errors import ConfigError
from rlalign.records import checkpoint, logs
from rlalign.records.rows import OURS
from rlalign.records.rundir import RunDir, write_atomic


def kept(path: Path) -> Iterator[dict[str, Any]]:
    """The responses a run kept, up to its last checkpoint, as logged data that says where it comes from."""
    run = RunDir.open(path, exclusive=False)
    points = checkpoint.find(run.checkpoints)
    if points:
        sizes = checkpoint.log_sizes(run.checkpoints, points[-1])
    elif run.model.is_dir():  # finished, and its checkpoints deleted
        sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in run.rows.glob("*.jsonl")}
    else:
        raise ConfigError(
            f"{path}: nothing is saved yet: wait for its first iteration, or go on with it: "
            f"`rlalign run --resume {path}`"
        )
    sizes = {name: size for name, size in sizes.items() if name.startswith("rows/")}
    if not sizes:
        raise ConfigError(
            f"{path}: has kept no responses; say `train: {{keep_responses: true}}` in its pipeline and run it again, "
            "or add --new to sample now, from its last checkpoint"
        )
    for name, size in sizes.items():
        if not (path / name).is_file() or (path / name).stat().st_size < size:
            raise ConfigError(f"{path / name}: was deleted or cut; put it back")
    return _rows(run, sizes)


def _rows(run: RunDir, sizes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Those of the first pass first. Rows of different phases and passes get different ids."""
    lock = run.lock.read_bytes()
    said = json.loads(lock)
    origin = {
        "run": run.name,
        "lock": hashlib.sha256(lock).hexdigest(),
        "model": said["models"]["policy"],
        "seed": said["seed"],
        "version": said["plugins"]["rlalign"]["version"],
        "split": "train",
    }
    for name in sorted(sizes, key=lambda name: (int(Path(name).stem.rpartition("-")[2]), name)):
        with (run.path / name).open("rb") as file:
            while file.tell() < sizes[name]:
                row = json.loads(file.readline())
                row["meta"][OURS] |= origin
                yield {**row, "id": f"{Path(name).stem}/{row['id']}"}


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write logged data, whole or not at all; says what was written."""
    same: list[bool] = []

    def lines() -> Iterator[str]:
        for row in rows:
            same.extend(row["meta"][OURS]["same_tokens"])
            line = json.dumps(logs.plain(row), ensure_ascii=False, allow_nan=False, default=str)
            # What UTF-8 cannot hold, half of a pair of surrogates, as JSON's own escape.
            yield (line + "\n").encode("utf-8", "backslashreplace").decode()

    write_atomic(file, lines())
    others = same.count(False)
    note = f"; {others} of them are other tokens when they are read back (`same_tokens`)" if others else ""
    return f"{file}, {len(same)} responses{note}"
