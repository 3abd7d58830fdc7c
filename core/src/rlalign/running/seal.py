"""Whether tensors and the records that hold them are as they were.

A tensor's version tells of every change in place; its bytes of what versions do not see, `.data` and `.numpy()`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from ctypes import string_at
from operator import is_
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rlalign.data.allowed import Allowed
from rlalign.data.batch import Batch, Outputs, Reward
from rlalign.data.rollout import Rollout


class Ledger:
    """What tensors on the CPU hold, copied once while a tensor lives; of one elsewhere only its version tells."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, bytes]] = {}

    def look(self, x: Tensor, version: int) -> bytes:
        """The bytes of a tensor of this version."""
        known = self._known.get(id(x))
        if known is None or known[1] != version or known[0]() is not x:
            known = self._known[id(x)] = (weakref.ref(x, self._gone(id(x))), version, held_by(x))
        return known[2]

    def _gone(self, which: int) -> Callable[[weakref.ref[Tensor]], None]:
        known = self._known

        def forget(of: weakref.ref[Tensor]) -> None:
            if which in known and known[which][0] is of:
                del known[which]

        return forget

    def forget(self) -> None:
        self._known.clear()


class Seal:
    """Tensors and records as they are now, and their numbers."""

    def __init__(self, given: Mapping[str, Any], ledger: Ledger) -> None:
        self._given = given
        self._records: list[tuple[Any, dict[str, Any]]] = []
        self._tensors: list[Tensor] = []
        for value in given.values():
            self._reach(value)
        self._versions = _versions(self._tensors)
        self._bytes = list(map(ledger.look, self._tensors, self._versions))
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
                for each in {id(each): each for each in value}.values():  # equal prompts may share a tensor
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
        if wrong is None:
            wrong = _first_difference(self._bytes, list(map(held_by, self._tensors)))
        if wrong is None:
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


def held_by(x: Tensor) -> bytes:
    """A copy of what a tensor holds, where looking at it is cheap: read from memory, as numpy takes twice the time."""
    if not x.is_cpu or x.layout is not torch.strided:
        return b""
    dense = x if x.is_contiguous() else x.detach().contiguous()
    return string_at(dense.data_ptr(), dense.nbytes)


def _first_difference(before: Sequence[object], now: Sequence[object]) -> int | None:
    if before == now:
        return None
    return next(i for i, (was, is_now) in enumerate(zip(before, now, strict=True)) if was != is_now)


def _path(given: Mapping[str, Any], x: Tensor) -> str | None:
    """`batch.rollout.mask_NT`."""
    todo = list(given.items())
    while todo:
        path, value = todo.pop(0)
        if value is x:
            return path
        if isinstance(value, Allowed):
            todo += [(f"{path}.rows", each) for row in value.rows if row for each in vars(row).values()]
        elif isinstance(value, _RECORDS):
            todo += [(f"{path}.{name}", each) for name, each in vars(value).items() if name != "examples"]
        elif isinstance(value, Mapping):
            todo += [(f"{path}[{name!r}]", each) for name, each in value.items()]
        elif isinstance(value, tuple) and value and not isinstance(value[0], str):
            todo += [(f"{path}[{i}]", each) for i, each in enumerate(value)]
    return None
