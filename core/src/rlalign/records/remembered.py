"""What a frozen model says of logged responses: computed once per run, step by step, and read back from then on.

A log like the others: append-only, cut at a checkpoint, so that a resumed run finds what it had and no more.
A record is the response's key, the number of steps, and a value for each.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from rlalign.data.batch import Outputs
from rlalign.data.rollout import Rollout
from rlalign.records.logs import Logs

_HEAD = struct.Struct("<16sI")


class Remembered:
    """One output of one model. Only where each response's record begins stays in memory."""

    def __init__(self, run: Path, logs: Logs, name: str, dtype: torch.dtype) -> None:
        self._dtype = numpy.dtype("<f8" if dtype == torch.float64 else "<f4")
        self.name = f"remembered/{name}.f{8 * self._dtype.itemsize}"
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


def scored_once(
    rollout: Rollout, logged_N: Tensor, stores: Mapping[str, Remembered], score: Callable[[Rollout], Outputs]
) -> dict[str, Tensor]:
    """Outputs [N,T] by name: read where a logged response is known, else scored; one that is there twice, once."""
    rows = logged_N.nonzero()[:, 0].tolist()
    keys = dict(zip(rows, keys_of(rollout, rows), strict=True))
    first = {
        key: i for i, key in reversed(keys.items()) if not all(store.knows(key) for store in stores.values())
    }
    asked = [i for i in range(len(rollout)) if i not in keys or first.get(keys[i]) == i]
    known = {i: key for i, key in keys.items() if first.get(key) != i}
    new = torch.tensor(asked, device=logged_N.device, dtype=torch.long)
    scored = score(rollout if len(new) == len(rollout) else rollout.take(new))
    length_N = rollout.length_N.tolist()
    found = {}
    for output, store in stores.items():
        x_NT = rollout.logprobs_NT.new_zeros(rollout.mask_NT.shape)
        x_NT[new] = getattr(scored, f"{output}_NT").to(x_NT)
        for i in asked:
            if i in keys:
                store.add(keys[i], x_NT[i, : length_N[i]])
        for i, values in zip(known, store.read(list(known.values())), strict=True):
            x_NT[i, : len(values)] = values.to(x_NT)
        found[output] = x_NT
    return found
