"""Responses of several runs to the same prompts, read from runs or from files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rlalign.cli.inspection import run_folder
from rlalign.errors import ConfigError
from rlalign.records import logs
from rlalign.records.environment import read_lock
from rlalign.records.result import Result
from rlalign.records.rundir import is_run


class Message(BaseModel):
    """One message of a prompt that is a chat."""

    role: str
    content: str


Prompt = str | list[Message]
_HALVES = re.compile("[\ud800-\udfff]")


class _Row(BaseModel):
    """A row of logged data, or of `rlalign sample --json`."""

    id: str | int | None = None
    prompt: Prompt
    response: str | None = None
    responses: list[str] = []
    meta: dict[str, Any] = {}

    @property
    def ours(self) -> Mapping[str, Any]:
        found = self.meta.get("rlalign")
        return found if isinstance(found, dict) else {}

    @property
    def example(self) -> str | None:
        """The id of its example; of a response that was kept while a run trained, not that of the row."""
        found = self.ours.get("example", self.id)
        return None if found is None else str(found)

    @property
    def first(self) -> str | None:
        return self.response if self.response is not None else next(iter(self.responses), None)


@dataclass(frozen=True)
class Source:
    """The responses of one run: a row for each example, with one response."""

    name: str
    path: str
    task: str | None
    rows: list[_Row]

    @property
    def has_ids(self) -> bool:
        return all(row.example is not None for row in self.rows)

    def by_example(self, ids: bool) -> dict[str, _Row]:
        """By prompt, and by id if those are wanted.

        Of an example's rows the first counts where each has one response, as in samples; in logged data, which
        follows a run through its training, the last.
        """
        found: dict[str, _Row] = {}
        for row in self.rows:
            key = json.dumps([row.example if ids else None, row.model_dump()["prompt"]], ensure_ascii=False)
            if row.response is None or key not in found:
                found[key] = row
        return found


@dataclass(frozen=True)
class Example:
    """A prompt, and what each run answered."""

    id: str | None
    prompt: Prompt
    responses: Mapping[str, str]


def read(said: str) -> Source:
    """A run, by its folder or its name: what its last evaluation logged. Or a file of rows."""
    folder = run_folder(said)
    if is_run(folder):
        samples = Result(folder).samples
        last = {key: samples[-1][key] for key in ("phase", "repeat", "iteration")} if samples else {}
        rows = [row for row in samples if last.items() <= row.items()]
        return _source(folder.resolve().name, said, rows, task=_task_of(folder, last.get("phase")))
    path = Path(said)
    if not path.is_file():
        raise ConfigError(
            f"{said}: is neither a run nor a file of samples; `rlalign runs` lists the runs that are there"
        )
    return _source(path.stem, said, list(_rows(path)), task=None)


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a JSON list, or of JSON lines."""
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if text.lstrip().startswith(b"["):
        try:
            yield from json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is no JSON: {error}") from None
    else:
        for number, line in enumerate(text.split(b"\n"), 1):
            if line.strip():
                yield logs.row(line, f"{path}:{number}")


def _source(name: str, path: str, found: Sequence[Any], task: str | None) -> Source:
    rows = []
    for number, row in enumerate(found, 1):
        try:
            # Half of a pair of surrogates, which a model may write, is no character that a page can hold.
            whole = _HALVES.sub("\ufffd", json.dumps(row, ensure_ascii=False))
            rows.append(_Row.model_validate_json(whole))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ConfigError(
                f"{path}: row {number}, `{'.'.join(map(str, first['loc']))}`: {first['msg']}; expected a `prompt` "
                "with `responses`, as `rlalign export RUN --samples FILE` writes them, or with a `response`, as "
                "`rlalign sample RUN --json` does"
            ) from None
    rows = [row for row in rows if row.first is not None]
    if not rows:
        raise ConfigError(
            f"{path}: holds no responses; of a run that evaluates nothing, `rlalign sample {path} --new --json` "
            "makes some if a split is named"
        )
    told = task or next((str(row.ours["task"]) for row in rows if "task" in row.ours), None)
    return Source(name, path, told, rows)


def _task_of(run: Path, phase: str | None) -> str | None:
    """The name of the task of a phase, as far as the run says."""
    pipeline = read_lock(run / "lock.json").get("pipeline") or {}
    phases = [p for p in pipeline.get("phases") or [] if isinstance(p, dict)]
    own = [p["task"] for p in phases if p.get("name") == phase and "task" in p]
    task = [*own, pipeline.get("task"), *(p.get("task") for p in phases)]
    named = next((one for one in task if one), None)
    return (
        str(next(iter(named)))
        if isinstance(named, dict) and named
        else named
        if isinstance(named, str)
        else None
    )


def distinct(sources: Sequence[Source]) -> list[Source]:
    """The same, by names that differ: paths where names do not."""
    names = [source.name for source in sources]
    if len({str(Path(source.path).resolve()) for source in sources}) < len(sources):
        raise ConfigError(f"{', '.join(s.path for s in sources)}: one of them is named twice")
    if len(set(names)) == len(names):
        return list(sources)
    return [Source(source.path, source.path, source.task, source.rows) for source in sources]


def paired(sources: Sequence[Source], items: int, seed: int) -> list[Example]:
    """Examples that every run has answered, at most so many, by chance but the same for the same seed."""
    ids = all(source.has_ids for source in sources)
    by_example = [source.by_example(ids) for source in sources]
    shared = [key for key in by_example[0] if all(key in one for one in by_example[1:])]
    if not shared:
        counts = ", ".join(
            f"{source.name} {len(one)}" for source, one in zip(sources, by_example, strict=True)
        )
        raise ConfigError(
            f"no prompt was answered by all of them (prompts: {counts}): evaluate the runs on the same split of the "
            "same task; with `rlalign sample RUN --new --n 50 --json > FILE` each answers its first prompts"
        )
    chosen = random.Random(seed).sample(sorted(shared), min(items, len(shared)))
    return [
        Example(
            by_example[0][key].example if ids else None,
            by_example[0][key].prompt,
            {source.name: str(one[key].first) for source, one in zip(sources, by_example, strict=True)},
        )
        for key in chosen
    ]
