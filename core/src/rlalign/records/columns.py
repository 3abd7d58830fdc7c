"""A number for every logged response: computed once over the whole data, kept on disk, drawn from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from pydantic import BaseModel, NonNegativeInt
from torch import Tensor

from rlalign.data.batch import Reward
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.spoken import as_logged
from rlalign.errors import CheckpointError, ComponentError, RLAlignError
from rlalign.records.files import inside, read_json
from rlalign.records.rundir import write_atomic
from rlalign.records.shelf import mapped
from rlalign.records.sums import SavedShape, Sum, sum_of
from rlalign.world.ranks import here


class _Progress(BaseModel):
    examples: NonNegativeInt
    values: SavedShape


Compute = Callable[[Rollout, Reward], Tensor]
PIECE_TOKENS = 65536
"""Characters of logged text, roughly, that are encoded and scored at once."""


def data_fingerprint(data: Sequence[Example]) -> str:
    """A hash of all examples, read one by one."""
    digest = hashlib.sha256()
    for example in data:
        fields = [
            example.id,
            example.prompt,
            [as_logged(response) for response in example.responses],
            example.scores,
            example.finished,
            example.meta,
        ]
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    return digest.hexdigest()


class Columns:
    """The columns of one phase's data. `folders` says which file each one lives in, and is saved."""

    def __init__(
        self,
        folder: Path,
        data: Sequence[Example],
        starts: Callable[[], Tensor],
        guard: Callable[[], None] = lambda: None,
        refuse: Callable[[Sequence[Example]], Collection[int]] = lambda examples: (),
    ) -> None:
        self.folder = folder
        self.data = data
        self.starts = starts
        self.guard = guard
        """Raises where the run is not this process's any more."""
        self.refuse = refuse
        """Places of the examples that the policy cannot read. No draw gives them, and their values are 0."""
        self.folders: dict[str, str] = {}
        self._open: dict[str, numpy.ndarray] = {}

    def make(
        self,
        name: str,
        key: Callable[[], str],
        score: Callable[[Sequence[Example]], tuple[Rollout, Reward]],
        compute: Compute,
    ) -> Tensor:
        """The column, from disk as far as it is there, computed piece by piece where it is not."""
        computed = name in self.folders
        if not computed:
            self.folders[name] = f"{name}-{key()[:16]}"
        rows = int(self.starts()[-1])
        if rows == 0:
            raise RLAlignError(f"column `{name}`: the data has no logged responses")
        folder, leads = inside(self.folder, self.folders[name]), here().leads
        path, progress, found = folder / "values.f64", folder / "progress.json", Sum()

        def begun() -> int:
            nonlocal found
            self.guard()
            folder.mkdir(parents=True, exist_ok=True)
            done, found = self._done(path, progress, rows)
            if computed and done < len(self.data):
                raise CheckpointError(
                    f"{path}: is missing, cut short or edited, and the models it was computed with have learned since; "
                    "put it back, or start the run again"
                )
            if done == 0:
                with path.open("wb") as file:  # zeros, no hole: a full disk shows here, not as a bus error
                    for start in range(0, rows, PIECE_TOKENS):
                        file.write(bytes(8 * min(PIECE_TOKENS, rows - start)))
            return done

        done = here().lead(begun, f"the column `{name}`")
        values = numpy.memmap(path, dtype=numpy.float64, mode="r+", shape=(rows,)) if leads else None
        starts = self.starts()
        while done < len(self.data):
            piece = self._piece(done)
            until = done + len(piece)
            refused = self.refuse(piece)
            examples = [
                replace(example, row=int(starts[done + i]))
                for i, example in enumerate(piece)
                if example.responses and i not in refused
            ]
            if examples:
                rollout, reward = score(examples)
                there = [e.row + j for e in examples for j in range(len(e.responses))]
                made = _checked(compute(rollout, reward), rollout, name)
                if values is not None:
                    values[there] = made
                    values.flush()
            first, done = done, until
            if values is not None:
                if any(example.responses for example in piece):
                    found.add(values[int(starts[first]) : int(starts[until])].tobytes())
                self.guard()
                write_atomic(progress, json.dumps({"examples": done, "values": found.saved()}))
        here().lead(lambda: None, f"the end of the column `{name}`")
        self._open[name] = numpy.memmap(path, dtype=numpy.float64, mode="r", shape=(rows,))
        return mapped(path, numpy.dtype(numpy.float64))

    def _done(self, path: Path, progress: Path, rows: int) -> tuple[int, Sum]:
        """How many examples have their values, as far as these are what was written; and the values' sum."""
        try:
            said = read_json(progress, _Progress)
            found = sum_of(path, 8 * int(self.starts()[said["examples"]]))
            whole = path.stat().st_size == rows * 8 and found.saved() == said["values"]
        except (CheckpointError, OSError, IndexError):
            whole = False
        return (said["examples"], found) if whole else (0, Sum())

    def _piece(self, start: int) -> list[Example]:
        """Whole groups from `start` on, of a bounded size."""
        characters, found = 0, list[Example]()
        while start + len(found) < len(self.data) and (not found or characters < PIECE_TOKENS):
            found.append(self.data[start + len(found)])
            characters += sum(len(str(found[-1].prompt)) + len(r) for r in found[-1].responses)
        return found

    def attach(self, rollout: Rollout, row_N: Tensor) -> Rollout:
        """Give logged responses, which stand at `row_N` of the data, the values of every column."""
        dtype, device = rollout.logprobs_NT.dtype, rollout.group_N.device
        found = {
            name: torch.from_numpy(values[row_N.cpu().numpy()]).to(device=device, dtype=dtype)
            for name, values in self._open.items()
        }
        return rollout.with_columns(**found) if found else rollout


def _checked(values: Tensor, rollout: Rollout, name: str) -> numpy.ndarray:
    if not isinstance(values, Tensor) or values.shape != (len(rollout),):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ComponentError(f"column `{name}`: computed {found} for {len(rollout)} responses")
    if not bool(values.isfinite().all()):
        raise ComponentError(f"column `{name}`: computed a NaN or an infinite value")
    result: numpy.ndarray = values.detach().cpu().double().numpy()
    return result
