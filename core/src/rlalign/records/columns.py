"""A number for every logged response: computed once over the whole data, kept on disk, drawn from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
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
from rlalign.records.sums import SavedShape, Sum, sum_of


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
    ) -> None:
        self.folder = folder
        self.data = data
        self.starts = starts
        self.guard = guard
        """Raises where the run is not this process's any more."""
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
        self.guard()
        folder = inside(self.folder, self.folders[name])
        folder.mkdir(parents=True, exist_ok=True)
        path, progress = folder / "values.f64", folder / "progress.json"
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
        values = numpy.memmap(path, dtype=numpy.float64, mode="r+", shape=(rows,))
        starts = self.starts()
        while done < len(self.data):
            until = self._piece(done)
            examples = [
                replace(self.data[i], row=int(starts[i]))
                for i in range(done, until)
                if self.data[i].responses
            ]
            if examples:
                rollout, reward = score(examples)
                values[int(starts[done]) : int(starts[until])] = _checked(
                    compute(rollout, reward), rollout, name
                )
                values.flush()
                found.add(values[int(starts[done]) : int(starts[until])].tobytes())
            done = until
            self.guard()
            write_atomic(progress, json.dumps({"examples": done, "values": found.saved()}))
        self._open[name] = numpy.memmap(path, dtype=numpy.float64, mode="r", shape=(rows,))
        return torch.from_numpy(numpy.array(self._open[name]))

    def _done(self, path: Path, progress: Path, rows: int) -> tuple[int, Sum]:
        """How many examples have their values, as far as these are what was written; and the values' sum."""
        try:
            said = read_json(progress, _Progress)
            found = sum_of(path, 8 * int(self.starts()[said["examples"]]))
            whole = path.stat().st_size == rows * 8 and found.saved() == said["values"]
        except (CheckpointError, OSError, IndexError):
            whole = False
        return (said["examples"], found) if whole else (0, Sum())

    def _piece(self, start: int) -> int:
        """Whole groups from `start` on, of a bounded size."""
        characters, end = 0, start
        while end < len(self.data) and (end == start or characters < PIECE_TOKENS):
            example = self.data[end]
            characters += sum(len(str(example.prompt)) + len(r) for r in example.responses)
            end += 1
        return end

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
