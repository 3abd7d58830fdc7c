"""What a run has written into its folder, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from rlalign.errors import ConfigError
from rlalign.records import logs
from rlalign.records.files import StrPath, read_json, require_shape
from rlalign.records.rundir import RunDir

Row = dict[str, Any]


class _Message(BaseModel):
    role: str
    content: str


class _Sample(BaseModel):
    phase: str
    repeat: int
    iteration: int
    prompt: str | list[_Message]
    response: str
    scores: dict[str, float | str] | None = None


class _Learned(_Sample):
    group: int
    reward: float | str
    advantage: float | str | None = None


class _Signed(BaseModel):
    phase: str
    signatures: dict[str, str]


SIGNATURES = "signatures.jsonl"
COSTS = "costs.json"


def signatures_in(folder: Path) -> dict[str, dict[str, str]]:
    """By phase, what each of its scores depends on, as it was written down last."""
    path, found = folder / SIGNATURES, {}
    for i, row in enumerate(logs.read(path) if path.exists() else (), 1):
        require_shape(row, _Signed, folder / f"{SIGNATURES}:{i}")
        found[row["phase"]] = row["signatures"]
    return found


class Result:
    """What a run has written into its folder so far; read anew each time. Needs no torch."""

    def __init__(self, folder: StrPath) -> None:
        self.folder = RunDir.open(folder, exclusive=False).path
        self.model = self.folder / "model"
        """The trained policy as a model folder; there once the run is finished."""

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r}, {'finished' if self.finished else 'unfinished'})"

    @property
    def finished(self) -> bool:
        return self.model.is_dir()

    @property
    def rows(self) -> list[Row]:
        """A row for each iteration and each evaluation, as they came."""
        return self._rows("metrics.jsonl")

    @property
    def metrics(self) -> list[Row]:
        """A row for each iteration."""
        return [row for row in self.rows if not is_evaluation(row)]

    @property
    def evaluations(self) -> list[Row]:
        """A row for each evaluation."""
        return [row for row in self.rows if is_evaluation(row)]

    @property
    def last(self) -> Row:
        """The last evaluation's row, without evaluations the last iteration's."""
        return (self.evaluations or self.metrics or [{}])[-1]

    @property
    def samples(self) -> list[Row]:
        """The first responses of each evaluation, with prompts and scores."""
        return self._shown("samples.jsonl", _Sample)

    @property
    def learned(self) -> list[Row]:
        """Some responses that it learned from before each evaluation, with rewards, scores and advantages."""
        return self._shown("learned.jsonl", _Learned)

    @property
    def signatures(self) -> dict[str, str]:
        """What the figures of each score depend on beside the texts, where its component says so, by its name."""
        return {name: said for phase in signatures_in(self.folder).values() for name, said in phase.items()}

    @property
    def costs(self) -> dict[str, Any]:
        """By phase, what an iteration was estimated to take and what it took; empty where nothing was estimated."""
        path = self.folder / COSTS
        return read_json(path, dict[str, Any]) if path.exists() else {}

    def frame(self, what: Literal["metrics", "evaluations", "samples", "learned"] = "metrics") -> Any:
        """The same rows as a `pandas.DataFrame`."""
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise ConfigError(
                f"a frame needs pandas: `pip install pandas`; `.{what}` gives plain rows"
            ) from error
        return pandas.DataFrame(getattr(self, what))

    def export_responses(self, file: StrPath) -> str:
        """Write the scored responses the run kept (`train.keep_responses`) as logged data; says what was written."""
        from rlalign.records.kept import kept, write_rows

        return write_rows(Path(file), kept(self.folder))

    def clean(self, *, rows: bool = False, dry_run: bool = False) -> dict[str, int]:
        """Delete what only going on with the run needs, as `rlalign clean` does; says the bytes freed, by folder."""
        from rlalign.records.cleaning import clean

        return clean(self.folder, rows=rows, dry_run=dry_run)

    def _shown(self, name: str, shape: type[_Sample]) -> list[Row]:
        found = self._rows(name)
        for i, row in enumerate(found, 1):
            require_shape(row, shape, self.folder / f"{name}:{i}")
        return found

    def _rows(self, name: str) -> list[Row]:
        path = self.folder / name
        return [_numbers(row) for row in logs.read(path)] if path.exists() else []


def is_evaluation(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in row)


def _numbers(row: Row) -> Row:
    """A row with numbers where a log has words for what JSON cannot say."""
    return {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in row.items()}
