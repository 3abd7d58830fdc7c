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


class Remembered:
    """One output of one model. Only where each response's values stand stays in memory."""

    def __init__(self, run: Path, logs: Logs, name: str, dtype: torch.dtype) -> None:
        self._dtype = numpy.dtype("<f8" if dtype == torch.float64 else "<f4")
        self.name = f"remembered/{name}.f{8 * self._dtype.itemsize}"
        self._path = run / self.name
        self._logs = logs
        self._places: dict[bytes, tuple[int, int]] = {}
        """By key: where a response's values begin, and how many bytes they are."""
        self._end = 0
        if here().leads and self._path.exists():
            self._walk()
        if here().size > 1:
            self._as_rank_0_found_it()

    def _as_rank_0_found_it(self) -> None:
        """It writes the file, so another process may see less of it."""
        places = [(key.hex(), *place) for key, place in self._places.items()]
        told = here().lead(lambda: (self._end, places), f"what is remembered in {self.name}")
        self._end = told[0]
        self._places = {bytes.fromhex(key): (start, size) for key, start, size in told[1]}

    def _walk(self) -> None:
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            while self._end < size:
                key, count = _HEAD.unpack(file.read(_HEAD.size))
                self._place(key, count * self._dtype.itemsize)
                file.seek(self._end)

    def _place(self, key: bytes, size: int) -> None:
        self._places[key] = self._end + _HEAD.size, size
        self._end += _HEAD.size + size

    def knows(self, key: bytes) -> bool:
        """Whether this response was met before."""
        return key in self._places

    def read(self, keys: Sequence[bytes]) -> Tensor:
        """The values of responses that are known, one a step, those of one response after the other's."""
        if not keys:
            return torch.from_numpy(numpy.empty(0, self._dtype))

        def held() -> bytes:
            with self._path.open("rb") as file:
                found = {key: self._read(file, *self._places[key]) for key in dict.fromkeys(keys)}
            return b"".join(found[key] for key in keys)

        told = here().lead(held, f"{len(keys)} responses remembered in {self.name}")
        return torch.from_numpy(numpy.frombuffer(bytearray(told), self._dtype))

    @staticmethod
    def _read(file: BinaryIO, start: int, size: int) -> bytes:
        file.seek(start)
        return file.read(size)

    def add(self, key: bytes, values_T: Tensor) -> None:
        """Keep the values of a response."""
        if key in self._places:
            return
        values = values_T.cpu().numpy().astype(self._dtype).tobytes()
        self._logs.write(self.name, _HEAD.pack(key, len(values_T)) + values)
        self._place(key, len(values))


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
