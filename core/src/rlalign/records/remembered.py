"""What a frozen model says of logged responses: computed once a run, step by step, and read back from then on.

A log like the others: append-only, cut at a commit point, so that a resumed run finds what it had and no more.
A record is the response's key, the number of steps, and a value for each.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from rlalign.records.logs import Logs
from rlalign.types import Rollout

_HEAD = struct.Struct("<16sI")
FOLDER = "remembered"


class Remembered:
    """One output of one model. Only where each response's record begins stays in memory."""

    def __init__(self, run: Path, logs: Logs, name: str, dtype: torch.dtype) -> None:
        self._dtype = numpy.dtype("<f8" if dtype == torch.float64 else "<f4")
        self.name = f"{FOLDER}/{name}.f{8 * self._dtype.itemsize}"
        self._path = run / self.name
        self._logs = logs
        self._starts: dict[bytes, int] = {}
        self._end = 0
        if self._path.exists():
            self._walk()

    def _walk(self) -> None:
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            while self._end < size:
                key, count = _HEAD.unpack(file.read(_HEAD.size))
                self._starts[key] = self._end
                self._end += _HEAD.size + count * self._dtype.itemsize
                file.seek(self._end)

    def knows(self, key: bytes) -> bool:
        """Whether this response was met before."""
        return key in self._starts

    def read(self, keys: Sequence[bytes]) -> list[Tensor]:
        """The values of responses that are known, one a step."""
        if not keys:
            return []
        found = []
        with self._path.open("rb") as file:
            for key in keys:
                file.seek(self._starts[key])
                _, count = _HEAD.unpack(file.read(_HEAD.size))
                values = numpy.frombuffer(file.read(count * self._dtype.itemsize), dtype=self._dtype)
                found.append(torch.from_numpy(values.copy()))
        return found

    def add(self, key: bytes, values_T: Tensor) -> None:
        """Keep the values of a response."""
        if key in self._starts:
            return
        record = _HEAD.pack(key, len(values_T)) + values_T.cpu().numpy().astype(self._dtype).tobytes()
        self._logs.write(self.name, record)
        self._starts[key] = self._end
        self._end += len(record)


def keys_of(rollout: Rollout, rows: Sequence[int]) -> list[bytes]:
    """What tells responses apart: their prompts and actions."""
    prompts = [x.cpu().numpy().astype("<i8").tobytes() for x in rollout.inputs]
    length_N, group_N = rollout.length_N.tolist(), rollout.group_N.tolist()
    actions_NT = rollout.actions_NT.cpu().numpy().astype("<i8")
    return [
        hashlib.blake2b(
            struct.pack("<q", len(prompts[group_N[i]]))
            + prompts[group_N[i]]
            + actions_NT[i, : length_N[i]].tobytes(),
            digest_size=16,
        ).digest()
        for i in rows
    ]
