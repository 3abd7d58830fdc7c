"""Arrays as long as the data: made once by rank 0, kept in a run's folder, mapped by every process that reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor

from rlalign.once import once
from rlalign.world.ranks import here


class Shelf:
    """A folder of arrays. What stands in one is in its name, so that nothing else is ever read from it."""

    def __init__(self, folder: Path, guard: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._guard = guard
        """Raises where the run is not this process's any more."""

    def __call__(self, name: str, pieces: Callable[[], Iterable[Tensor]]) -> Tensor:
        """The array of that name, made of `pieces`, which are not empty and alike. Changes to it stay in memory."""
        path = self._folder / name

        def made() -> None:
            if not path.exists():
                self._guard()
                once(path, partial(_write, pieces))

        here().lead(made, f"the array {name}")
        (kind,) = path.suffixes[-1:]
        return mapped(path, numpy.dtype(kind.removeprefix(".")))


def mapped(path: Path, dtype: numpy.dtype) -> Tensor:
    """A file of numbers, of which nothing takes memory but what is written to, and that never reaches the file."""
    return torch.from_numpy(numpy.memmap(path, dtype, mode="c").view(numpy.ndarray))


def _write(pieces: Callable[[], Iterable[Tensor]], path: Path) -> None:
    with path.open("xb") as file:
        for piece in pieces():
            file.write(piece.numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())
