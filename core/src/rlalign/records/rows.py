"""What an earlier phase wrote down, as the data of a later one: read from disk row by row."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlalign.types import Example


class Rows(Sequence[Example]):
    """The scored responses in a log, then other examples. Only where each row begins stays in memory."""

    def __init__(self, path: Path, others: Sequence[Example] = ()) -> None:
        self.path = path
        self.others = others
        self.starts = array("q")
        if path.exists():
            with path.open("rb") as file:
                at = 0
                for line in file:
                    self.starts.append(at)
                    at += len(line)

    def __len__(self) -> int:
        return len(self.starts) + len(self.others)

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        if isinstance(place, range):
            return [self[i] for i in place]
        if place >= len(self.starts):
            return self.others[place - len(self.starts)]
        with self.path.open("rb") as file:
            file.seek(self.starts[place])
            return _example(json.loads(file.readline()))


def _example(row: dict[str, Any]) -> Example:
    return Example(
        id=row["id"],
        prompt=row["prompt"],
        responses=tuple(row["responses"]),
        scores=tuple(float(s) for s in row["scores"]),
        finished=tuple(row["finished"]),
        meta=row["meta"],
    )
