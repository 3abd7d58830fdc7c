"""Whether tensors and the records that hold them are as they were.

A tensor's version tells of every change in place; a checksum of what versions do not see, `.data` and `.numpy()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from types import MappingProxyType
from typing import Any
from zlib import crc32

import numpy
import torch
from torch import Tensor

from rlalign.data.allowed import Allowed
from rlalign.data.batch import Batch, Outputs, Reward
from rlalign.data.rollout import Rollout

REMEMBERED = 1024
"""Checksums that are kept at a time."""


class Ledger:
    """What tensors on the CPU hold, as checksums made once; of a tensor elsewhere only its version tells."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, numpy.ndarray, int]] = {}

    def look(self, x: Tensor) -> tuple[numpy.ndarray, int]:
        """The numbers of a tensor, not copied, and their checksum."""
        known, version = self._known.get(id(x)), _versions([x])[0]
        if known is None or known[1] != version:
            numbers = numbers_of(x)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[id(x)] = (x, version, numbers, checksum(numbers))
        return known[2:]

    def forget(self) -> None:
        self._known.clear()


class Seal:
    """Tensors and records as they are now; with a ledger, their numbers too."""

    def __init__(self, given: Mapping[str, Any], ledger: Ledger | None) -> None:
        self._given = given
        self._records: list[tuple[Any, dict[str, Any]]] = []
        self._tensors: list[Tensor] = []
        for value in given.values():
            self._reach(value)
        self._versions = _versions(self._tensors)
        self._numbers: list[numpy.ndarray] = []
        self._sums: list[int] = []
        self._places: list[int] = []
        if ledger is not None:
            looked = [ledger.look(x) for x in self._tensors]
            self._numbers, self._sums = [n for n, _ in looked], [s for _, s in looked]
            self._places = [x.data_ptr() for x in self._tensors]

    def _reach(self, value: Any) -> None:
        kind = type(value)
        if kind is Tensor:
            self._tensors.append(value)
        elif kind in _RECORDS:
            held = dict(vars(value))
            self._records.append((value, held))
            for each in held.values():
                if type(each) in _HOLDING:
                    self._reach(each)
        elif kind is tuple:
            if value and isinstance(value[0], Tensor | Rollout):
                for each in value:
                    self._reach(each)
        elif kind is Allowed:
            self._tensors += [x for row in value.rows if row for x in vars(row).values() if x is not None]
        elif isinstance(value, Mapping):
            for each in value.values():
                if type(each) in _HOLDING:
                    self._reach(each)

    def broken(self) -> str | None:
        """What is not as it was."""
        for record, held in self._records:
            now = vars(record)
            if not all(map(is_, held.values(), map(now.get, held))):
                name = next(name for name, value in held.items() if now.get(name) is not value)
                return f"{type(record).__name__.lower()}.{name}"
            if len(now) > len(held):  # worked out at the hook's own asking: new, so never changed
                for name in now.keys() - held.keys():
                    made = now[name] if isinstance(now[name], tuple) else (now[name],)
                    if any(_versions([x for x in made if isinstance(x, Tensor)])):
                        return f"{type(record).__name__.lower()}.{name}"
        wrong = _first_difference(self._versions, _versions(self._tensors))
        if wrong is None and self._numbers:
            wrong = _first_difference(self._sums, [checksum(n) for n in self._numbers])
        if wrong is None and self._places:
            wrong = _first_difference(self._places, [x.data_ptr() for x in self._tensors])
        if wrong is None:
            return None
        return _path(self._given, self._tensors[wrong]) or "a tensor it was given"


_RECORDS = (Rollout, Reward, Batch, Outputs)
_HOLDING = {Tensor, tuple, dict, MappingProxyType, Allowed, *_RECORDS}


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return [x._version for x in tensors]
    except RuntimeError:  # one was made in inference mode, where nobody counts
        return [0 if x.is_inference() else x._version for x in tensors]


def numbers_of(x: Tensor) -> numpy.ndarray:
    """What a tensor holds, where looking at it is cheap."""
    if x.device.type != "cpu" or x.layout != torch.strided or x.is_conj() or x.is_neg():
        return _NOTHING
    plain = x.detach()
    found: numpy.ndarray = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
    return found


def checksum(numbers: numpy.ndarray) -> int:
    return crc32(numbers if numbers.flags.c_contiguous else numpy.ascontiguousarray(numbers))  # type: ignore[arg-type]


def _first_difference(before: Sequence[int], now: Sequence[int]) -> int | None:
    if before == now:
        return None
    return next(i for i, (was, is_now) in enumerate(zip(before, now, strict=True)) if was != is_now)


_NOTHING = numpy.empty(0)


def _path(given: Mapping[str, Any], x: Tensor) -> str | None:
    """`batch.rollout.mask_NT`."""
    todo = list(given.items())
    while todo:
        path, value = todo.pop(0)
        if value is x:
            return path
        if isinstance(value, Rollout | Reward | Batch | Outputs | Allowed):
            todo += [(f"{path}.{name}", each) for name, each in vars(value).items() if name != "examples"]
        elif isinstance(value, Mapping):
            todo += [(f"{path}[{name!r}]", each) for name, each in value.items()]
        elif isinstance(value, tuple) and value and not isinstance(value[0], str):
            todo += [(f"{path}[{i}]", each) for i, each in enumerate(value)]
        elif type(value).__name__ == "_Row":
            todo += [(path, each) for each in vars(value).values()]
    return None
