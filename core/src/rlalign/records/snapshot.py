"""States as they are at one instant: copied into memory that the next copy uses again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlalign.records.tensors import can_be_stored

SHARE = 0.5
"""Of the memory that is free, what new copies may take."""


class Snapshot:
    """Copies tensors to the CPU; those of a GPU while it goes on computing.

    A copy takes as many bytes as what it copies. It stays for the next one, unless that has no tensor of this place.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._copied: list[torch.cuda.Event] = []

    def fits(self, state: Any, free: int) -> bool:
        """Whether there is room for what is to be copied and has no place yet."""
        new = sum(x.nbytes for place, x, of in _tensors(state) if of == place and not self._serves(place, x))
        return new <= SHARE * free

    def take(self, state: Any) -> Any:
        """The nested state, with copies of its tensors and containers. The copies before this one are overwritten."""
        copies: dict[str, Tensor] = {}
        held: dict[str, Tensor] = {}
        for place, x, of in (found := list(_tensors(state))):
            if of != place:
                copies[place] = copies[of]
                continue
            serves, known = self._serves(place, x), self._held.pop(place, None)
            if known is None or not serves:
                known = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=x.is_cuda)
            copies[place] = held[place] = known.copy_(x.detach(), non_blocking=x.is_cuda)
        self._held = held
        devices = {x.device for _, x, _ in found if x.is_cuda}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]
        return _with(state, copies)

    def wait(self) -> None:
        """Until the copies of a GPU's tensors are there."""
        for event in self._copied:
            event.synchronize()

    def _serves(self, place: str, x: Tensor) -> bool:
        held = self._held.get(place)
        return held is not None and held.shape == x.shape and held.dtype == x.dtype


def _tensors(state: Any) -> Iterator[tuple[str, Tensor, str]]:
    """Those that a file can hold, each with its place and the first place of the same tensor."""
    first: dict[object, str] = {}
    for place, x in _places(state, ""):
        same = (x.device, x.data_ptr(), x.dtype, x.shape, x.stride())
        yield place, x, first.setdefault(same, place) if x.numel() else place


def _places(state: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        if can_be_stored(state):
            yield place, state
    elif isinstance(state, Mapping):
        for key, item in state.items():
            yield from _places(item, f"{place}/{key!r}")
    elif type(state) in (list, tuple):
        for i, item in enumerate(state):
            yield from _places(item, f"{place}/{i}")


def _with(state: Any, copies: Mapping[str, Tensor], place: str = "") -> Any:
    if isinstance(state, Tensor):
        return copies.get(place, state)
    if isinstance(state, Mapping):
        return {key: _with(item, copies, f"{place}/{key!r}") for key, item in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_with(item, copies, f"{place}/{i}") for i, item in enumerate(state))
    return state
