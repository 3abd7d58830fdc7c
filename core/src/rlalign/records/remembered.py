"""What a frozen model says of logged responses: computed once per run, step by step, and read back from then on.

A log like the others: append-only, cut at a checkpoint, so that a resumed run finds what it had and no more.
A record is the response's key, the number of steps, and a value for each.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from torch import Tensor

from rlalign.data.batch import Outputs
from rlalign.data.rollout import Rollout
from rlalign.records.logs import Logs
from rlalign.world.ranks import here

_HEAD = struct.Struct("<16sI")
LATELY = 2**16
"""Responses whose places are found by a hash, or an eighth of all if that is more; each of the rest takes 24 bytes."""


class Places:
    """Where each response's record begins, by its key."""

    def __init__(self) -> None:
        self._lately: dict[bytes, int] = {}
        self._key_n = numpy.empty(0, "S16")
        """Sorted."""
        self._start_n = numpy.empty(0, numpy.int64)

    def get(self, key: bytes) -> int | None:
        """Where it begins; None of one that is not there."""
        if (known := self._lately.get(key)) is not None or not len(self._key_n):
            return known
        at = min(int(self._key_n.searchsorted(numpy.bytes_(key))), len(self._key_n) - 1)
        return int(self._start_n[at]) if self._key_n[at : at + 1].tobytes() == key else None

    def put(self, key: bytes, start: int) -> None:
        self._lately[key] = start
        if len(self._lately) > max(LATELY, len(self._key_n) // 8):
            self._settle()

    def told(self) -> tuple[bytes, bytes]:
        """All of them, for another process."""
        self._settle()
        return self._key_n.tobytes(), self._start_n.tobytes()

    @classmethod
    def of(cls, keys: bytes, starts: bytes) -> Places:
        found = cls()
        found._key_n, found._start_n = numpy.frombuffer(keys, "S16"), numpy.frombuffer(starts, numpy.int64)
        return found

    def _settle(self) -> None:
        key_n = numpy.concatenate([self._key_n, numpy.frombuffer(b"".join(self._lately), "S16")])
        start_n = numpy.concatenate([self._start_n, numpy.fromiter(self._lately.values(), numpy.int64)])
        order = key_n.argsort(kind="stable")
        self._lately, self._key_n, self._start_n = {}, key_n[order], start_n[order]


class Remembered:
    """One output of one model. Only where each response's values stand stays in memory."""

    def __init__(self, run: Path, logs: Logs, name: str, dtype: torch.dtype) -> None:
        self._dtype = numpy.dtype("<f8" if dtype == torch.float64 else "<f4")
        self.name = f"remembered/{name}.f{8 * self._dtype.itemsize}"
        self._path = run / self.name
        self._logs = logs
        self._places = Places()
        self._end = 0
        if here().leads and self._path.exists():
            self._walk()
        if here().size > 1:  # rank 0 writes the file, so another process may see less of it
            told = here().lead(
                lambda: (self._end, *self._places.told()), f"what is remembered in {self.name}"
            )
            self._end, self._places = told[0], Places.of(*told[1:])

    def _walk(self) -> None:
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            while self._end < size:
                key, count = _HEAD.unpack(file.read(_HEAD.size))
                self._place(key, count)
                file.seek(self._end)

    def _place(self, key: bytes, count: int) -> None:
        self._places.put(key, self._end)
        self._end += _HEAD.size + count * self._dtype.itemsize

    def knows(self, key: bytes) -> bool:
        """Whether this response was met before."""
        return self._places.get(key) is not None

    def read(self, keys: Sequence[bytes]) -> Tensor:
        """The values of responses that are known, one a step, those of one response after the other's."""
        if not keys:
            return torch.from_numpy(numpy.empty(0, self._dtype))

        def held() -> bytes:
            with self._path.open("rb") as file:
                found = {key: self._read(file, key) for key in dict.fromkeys(keys)}
            return b"".join(found[key] for key in keys)

        told = here().lead(held, f"{len(keys)} responses remembered in {self.name}")
        return torch.from_numpy(numpy.frombuffer(bytearray(told), self._dtype))

    def _read(self, file: BinaryIO, key: bytes) -> bytes:
        if (start := self._places.get(key)) is None:
            raise KeyError(key)
        file.seek(start)
        _, count = _HEAD.unpack(file.read(_HEAD.size))
        return file.read(count * self._dtype.itemsize)

    def add(self, key: bytes, values_T: Tensor) -> None:
        """Keep the values of a response."""
        if self.knows(key):
            return
        values = values_T.cpu().numpy().astype(self._dtype).tobytes()
        self._logs.write(self.name, _HEAD.pack(key, len(values_T)) + values)
        self._place(key, len(values_T))


def keys_of(rollout: Rollout, rows: Sequence[int]) -> list[bytes]:
    """What tells responses apart: their prompts and actions, and which of them were the policy's own."""
    prompts = [x.cpu().numpy().astype("<i8").tobytes() for x in rollout.inputs]
    length_N, group_N = rollout.length_N.tolist(), rollout.group_N.tolist()
    actions_NT = rollout.actions_NT.cpu().numpy().astype("<i8")
    mask_NT = rollout.mask_NT.cpu().numpy()
    return [
        hashlib.blake2b(
            struct.pack("<q", len(prompts[group_N[i]]))
            + prompts[group_N[i]]
            + actions_NT[i, : length_N[i]].tobytes()
            + mask_NT[i, : length_N[i]].tobytes(),
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
    places = {key: i for i, key in reversed(keys.items())}
    first = {key: i for key, i in places.items() if not all(store.knows(key) for store in stores.values())}
    asked = [i for i in range(len(rollout)) if i not in keys or first.get(keys[i]) == i]
    known = {i: key for i, key in keys.items() if first.get(key) != i}
    known_N = torch.zeros_like(logged_N).index_fill(
        0, torch.tensor([*known], dtype=torch.long).to(logged_N.device), True
    )
    steps_NT = known_N[:, None] & (
        torch.arange(rollout.steps, device=logged_N.device) < rollout.length_N[:, None]
    )
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
        x_NT[steps_NT] = store.read(list(known.values())).to(x_NT)
        found[output] = x_NT
    return found
