"""A task's examples, asked for: whatever goes wrong says which task, which split and what the row held."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rlalign.data.example import Example, LazyExamples
from rlalign.errors import ComponentError, ConfigError, attributed_to, raised_at, written_at
from rlalign.interface.component import Task

SHOWN = 12
"""Keys of a row that a message names."""


def examples_of(
    task: Task, who: str, split: str, *, name: str | None = None, said: str = ""
) -> Sequence[Example]:
    """The examples of a split; `who` is the task as messages name it, `said` where the split is named."""
    with _telling_the_row(f"{who}, asked for its examples of `{split}`{said}", task, split, name):
        found: Any = task.examples(split)
    if isinstance(found, LazyExamples):
        return _Named(found, who, task, split)
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")) or isinstance(found, str | Mapping):
        raise ConfigError(
            f"{who} must give a list of Examples for `{split}`, got {_kind(found)}"
            + ("; `return` is missing in `examples`?" if found is None else "")
            + ("; `list(…)` makes one of it" if isinstance(found, Iterator) else "")
        )
    if not isinstance(found, list | tuple):
        return found  # type: ignore[no-any-return]
    for number, example in enumerate(found):
        if not isinstance(example, Example):
            raise ConfigError(_no_example(who, number, split, example))
    return tuple(found)  # the task may go on with its own


class _Named(LazyExamples):
    """Examples that are loaded when they are asked for; what goes wrong then names the task and the example."""

    def __init__(self, examples: LazyExamples, who: str, task: Task, split: str) -> None:
        self._examples, self._who, self._task, self._split = examples, who, task, split
        self.response_counts, self.row_keys = examples.response_counts, examples.row_keys

    def __len__(self) -> int:
        return len(self._examples)

    def ahead(self, places: Sequence[int]) -> None:
        with attributed_to(f"{self._who}, told which examples of `{self._split}` come next,"):
            self._examples.ahead(places)

    def example(self, index: int) -> Example:
        what = f"{self._who}, asked for example {index} of `{self._split}` (the first is 0)"
        with _telling_the_row(what, self._task, self._split):
            found: Any = self._examples[index]
        if not isinstance(found, Example):
            raise ConfigError(_no_example(self._who, index, self._split, found))
        return found


def _no_example(who: str, number: int, split: str, found: Any) -> str:
    return (
        f"{who} must give Examples, got {_kind(found)} as number {number} of `{split}` (the first is 0); "
        "make it `Example(id=…, prompt=…)`"
    )


@contextmanager
def _telling_the_row(what: str, task: Task, split: str, name: str | None = None) -> Iterator[None]:
    try:
        with attributed_to(what, name):
            yield
    except ComponentError as error:
        if error.__cause__ is None or not isinstance(
            error.__cause__, LookupError | TypeError | AttributeError
        ):
            raise
        raise ComponentError(f"{error}{_of_the_row(error.__cause__, task, split)}") from error.__cause__


def _of_the_row(error: BaseException, task: Task, split: str) -> str:
    """What the task's code had before it when it failed, and what to do about it."""
    if isinstance(error, KeyError) and error.args == (split,):
        return (
            f"; it seems to have no split `{split}`: give those examples too, or name another split by "
            "`evaluate: {split: …}`"
        )
    frame, called, line = _failed_at(error, type(task).__module__)
    values = {name: value for name, value in frame.f_locals.items() if name.isidentifier()}
    said = [f"{name} = {value}" for name, value in values.items() if type(value) is int][:3]
    files = {str(getattr(value, "name", "")) for value in values.values() if hasattr(value, "readline")}
    at = (
        called
        + "".join(f", in {file}" for file in sorted(files))
        + (f", at {', '.join(said)}" if said else "")
    )
    rows = {
        name: value for name, value in values.items() if isinstance(value, Mapping) and _named(name, line)
    }
    lacking = error.args[0] if isinstance(error, KeyError) and error.args else None
    rows = {name: row for name, row in rows.items() if lacking is None or lacking not in row}
    has = "".join(f"; `{name}` has {_keys(row)}" for name, row in list(rows.items())[:2])
    cure = "; mend that row, or let the task do without it" if rows or said else ""
    if lacking is not None and rows:
        cure = (
            f": mend that row, or write `{next(iter(rows))}.get({lacking!r})` and leave out rows that lack it"
        )
    return f"{at}{has}{cure}"


def _failed_at(error: BaseException, module: str) -> tuple[FrameType, str, str]:
    """The last frame of the task's own module, else of all; where that is, unless the error says so; its line."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [place for place in frames if place[0].f_globals.get("__name__") == module] or frames
    frame, number = own[-1]
    at = written_at(frame, number)
    called = "" if at == raised_at(error) else f", called in {at}"
    return frame, called, linecache.getline(frame.f_code.co_filename, number)


def _named(name: str, line: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", line) is not None


def _keys(row: Mapping[Any, Any]) -> str:
    """Its keys, and which of them hold nothing."""
    named = [f"{key!r}" + (" (which is None)" if row[key] is None else "") for key in list(row)[:SHOWN]]
    return ", ".join(named or ["nothing in it"]) + (", …" if len(row) > SHOWN else "")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
