"""Responses as logged data: those that a run kept, read up to its last checkpoint, and how they are written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlalign.errors import ConfigError
from rlalign.records import checkpoint, logs
from rlalign.records.environment import read_lock
from rlalign.records.files import inside, require_shape
from rlalign.records.rows import OURS
from rlalign.records.rundir import RunDir, write_atomic
from rlalign.records.sums import sum_of, wrong_with


def kept(path: Path) -> Iterator[dict[str, Any]]:
    """The responses a run kept, up to its last checkpoint, as logged data that says where it comes from."""
    run = RunDir.open(path, exclusive=False)
    points = checkpoint.find(run.checkpoints)
    if points:
        sums = checkpoint.log_sums(run.checkpoints, points[-1])
    elif run.model.is_dir():  # finished, and its checkpoints deleted
        sums = {file.relative_to(path).as_posix(): sum_of(file).saved() for file in run.rows.glob("*.jsonl")}
    else:
        raise ConfigError(
            f"{path}: nothing is saved yet: wait for its first iteration, or go on with it: "
            f"`rlalign run --resume {path}`"
        )
    sums = {name: saved for name, saved in sums.items() if _of_rows(name)}
    if not sums:
        raise ConfigError(
            f"{path}: has kept no responses; say `train: {{keep_responses: true}}` in its pipeline and run it again, "
            "or add --new to sample now, from its last checkpoint"
        )
    for name, saved in sums.items():
        file = inside(path, name)
        told = wrong_with(file, saved, sum_of(file, saved["size"])) if file.is_file() else "was deleted"
        if told is not None:
            raise ConfigError(f"{file}: {told}; put it back")
    return _rows(run, {name: saved["size"] for name, saved in sums.items()})


class _Meta(BaseModel):
    rlalign: dict[str, Any]


class _Row(BaseModel):
    id: str
    meta: _Meta


def _of_rows(name: str) -> bool:
    return re.fullmatch(r"rows/[\w-]+-[0-9]{1,9}\.jsonl", name) is not None


def _rows(run: RunDir, sizes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Those of the first pass first. Rows of different phases and passes get different ids."""
    said = read_lock(run.lock)
    origin = {
        "run": run.name,
        "lock": hashlib.sha256(run.lock.read_bytes()).hexdigest(),
        "model": said["models"]["policy"],
        "seed": said["seed"],
        "version": said["plugins"]["rlalign"]["version"],
        "split": "train",
    }
    for name in sorted(sizes, key=lambda name: (int(Path(name).stem.rpartition("-")[2]), name)):
        with (run.path / name).open("rb") as file:
            while file.tell() < sizes[name]:
                row = logs.row(file.readline(), f"{run.path / name}:{file.tell()}")
                require_shape(row, _Row, run.path / name)
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
