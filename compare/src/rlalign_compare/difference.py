"""In what two runs differ, and since when. Of two pipeline files: what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlalign.cli.inspection import run_folder
from rlalign.errors import ConfigError
from rlalign.records.environment import APART, changed_values
from rlalign.records.result import Row, is_evaluation
from rlalign_compare import settings
from rlalign_compare.runs import Run
from rlalign_compare.settings import Setting

ROUNDING = 1e-5
"""Up to this share of a figure a first difference is as large as rounding makes it."""
SECTIONS = ("settings", "versions", "code", "data", "models", "machine")
_WHERE = {
    "python": "versions",
    "packages": "versions",
    "plugins": "code",
    "modules": "code",
    "given": "code",
    "data": "data",
    "models": "models",
}
_SAID_ELSEWHERE = ("pipeline", "seed", "deterministic", "environment", *APART)


@dataclass(frozen=True)
class Differs:
    """One thing that is not the same."""

    section: str
    key: str
    a: Any
    b: Any
    because: bool = True
    """Whether it may be why numbers differ: not a consequence of another one, and not moot."""
    note: str = ""


@dataclass(frozen=True)
class Diverged:
    """The first row of metrics that is not the same."""

    block: int
    row: Row
    other: Row
    metrics: list[str]
    """Those that differ, in the order they are logged."""
    agreed: tuple[int, int]
    """Iterations and evaluations before it."""

    @property
    def largest(self) -> float:
        """The largest difference of that row, as a share of the figure."""
        return max(share(self.row[name], self.other[name]) for name in self.metrics)


@dataclass
class Found:
    a: str
    b: str
    differs: list[Differs] = field(default_factory=list)
    diverged: Diverged | None = None
    metrics: list[str] = field(default_factory=list)
    """What is to be said of the metrics beside."""
    likely: str = ""
    notes: list[str] = field(default_factory=list)
    files: bool = False
    """Whether these are pipeline files, of which nothing but settings is known."""

    @property
    def data(self) -> dict[str, Any]:
        first = self.diverged
        return {
            "a": self.a,
            "b": self.b,
            "differs": [
                {"section": d.section, "key": d.key, "a": _plain(d.a), "b": _plain(d.b)} for d in self.differs
            ],
            "diverged": first
            and {
                "phase": first.row["phase"],
                "iteration": first.row["iteration"],
                "evaluation": is_evaluation(first.row),
                "metrics": {name: [first.row[name], first.other[name]] for name in first.metrics},
            },
            "metrics": self.metrics,
            "likely": self.likely,
            "notes": self.notes,
        }


def between(a: str, b: str) -> Found:
    """Two runs, or two pipeline files."""
    files = [run_folder(name) for name in (a, b)]
    kinds = [path.is_file() or (not path.exists() and path.suffix in (".yaml", ".yml")) for path in files]
    if all(kinds):
        said = [settings.of_file(path) for path in files]
        return Found(a, b, [*of_settings(*said)], files=True)
    if any(kinds):
        if not files[kinds.index(True)].exists():
            raise ConfigError(f"{files[kinds.index(True)]}: there is no such file")
        raise ConfigError(
            f"{files[kinds.index(True)]}: is a file, and the other a run; name two runs, or two pipeline files "
            f"(a run's own is {files[kinds.index(False)] / 'pipeline.yaml'})"
        )
    return of_runs(Run(a), Run(b))


def of_runs(a: Run, b: Run) -> Found:
    found = Found(a.name, b.name) if a.name != b.name else Found(str(a.folder), str(b.folder))
    found.differs = [*of_settings(a.pipeline, b.pipeline)]
    found.differs += _of_locks(a.lock, b.lock, found.differs)
    found.diverged = first_difference(a.rows, b.rows)
    found.metrics = [*_of_lengths(a, b, found)]
    found.notes = [*_notes(a, b, found)]
    found.likely = _likely(found)
    return found


# -- what they were made of ------------------------------------------------------------------------------------


def of_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Differs]:
    """Of the data of two pipelines."""
    several = max(settings.phases(a), settings.phases(b)) > 1
    one, other = (settings.settings(said, by_phase=several) for said in (a, b))
    for path, (was, now) in settings.differing(one, other).items():
        moot = settings.is_moot(path)
        yield Differs("settings", path, was, now, not moot, "changes no number" if moot else "")


def _of_locks(a: Mapping[str, Any], b: Mapping[str, Any], said: Sequence[Differs]) -> Iterator[Differs]:
    """What lock.json tells beside the pipeline."""
    one, other = ({key: x for key, x in lock.items() if key not in _SAID_ELSEWHERE} for lock in (a, b))
    paths = [settings.without_phase(each.key) for each in said if each.because]
    for key, was, now in changed_values(one, other):
        top = key.partition(".")[0].partition("[")[0]
        section = _WHERE.get(top, "machine")
        if top == "plugins" and key.endswith(".version"):
            section = "versions"
        note = _consequence(section, key, was, now, paths)
        yield Differs(section, _named(key), was, now, not note, note)


def _named(key: str) -> str:
    for ending in (".code", ".version"):
        if key.startswith("plugins.") and key.endswith(ending):
            return key.removeprefix("plugins.").removesuffix(ending)
    head, _, rest = key.partition(".")
    return rest if head in ("packages", "modules", "data", "models") else key


def _consequence(section: str, key: str, was: Any, now: Any, paths: Sequence[str]) -> str:
    """Which setting it follows from; empty where it stands for itself."""
    starts = {
        "models": ("policy", "seed", "train.dtype", "train.weights"),
        "data": ("task", "evaluate.split", "evaluate.examples"),
    }
    for path in paths:
        if any(path == one or path.startswith(f"{one}.") for one in starts.get(section, ())):
            return f"follows from {path}"
    if section == "data" and "/" not in key and paths:  # a digest of a component's own file
        name = key.removeprefix("data.").partition(".")[0]
        if found := next((path for path in paths if name in path.split(".")), None):
            return f"follows from {found}"
    if section in ("code", "versions") and None in (was, now) and paths:
        return "follows from the settings"
    if key == "dtype" and any(path in ("train.dtype", "train.weights") for path in paths):
        return "follows from train.dtype"
    if key.startswith("device") and "device" in paths:
        return "follows from device"
    return ""


# -- since when ------------------------------------------------------------------------------------------------


def first_difference(a: Sequence[Row], b: Sequence[Row]) -> Diverged | None:
    """The first iteration or evaluation of which any figure differs, times apart. Phases are told by their order."""
    known = {place(row): row for row in b}
    agreed = [0, 0]
    for row in a:
        other = known.get(place(row))
        if other is None:
            continue
        names = [n for n in figures(row) if n in other and not same(row[n], other[n])]
        if names:
            return Diverged(row["block"], row, other, names, (agreed[0], agreed[1]))
        agreed[is_evaluation(row)] += 1
    return None


def figures(row: Row) -> list[str]:
    """The names of numbers that a second run would find again."""
    where = ("phase", "repeat", "iteration", "block")
    return [
        name for name, x in row.items() if name not in where and not name.startswith("time/") and is_number(x)
    ]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def place(row: Row) -> tuple[int, int, bool]:
    return row["block"], row["iteration"], is_evaluation(row)


def share(one: float, other: float) -> float:
    """How far two figures are apart, as a share of the larger."""
    if same(one, other):
        return 0.0
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))


def _of_lengths(a: Run, b: Run, found: Found) -> Iterator[str]:
    """What of the metrics is in one run only."""
    counts = [len(run.training) for run in (a, b)]
    if counts[0] != counts[1]:
        yield f"{found.a} has {counts[0]} iterations, {found.b} {counts[1]}"
    for run, name in ((a, found.a), (b, found.b)):
        if not run.finished:
            yield f"{name} is {run.standing.state}, not finished"
    places = [{place(row) for row in run.rows} for run in (a, b)]
    both = places[0] & places[1]
    if any(counts) and not both:
        yield "they have no iteration in common"
    for kind, what in ((False, "iterations"), (True, "evaluations")):
        names = [
            {
                name
                for row in run.rows
                if is_evaluation(row) is kind and place(row) in both
                for name in figures(row)
            }
            for run in (a, b)
        ]
        for name, only in ((found.a, names[0] - names[1]), (found.b, names[1] - names[0])):
            if only:
                yield f"{what} of {name} only log {_several(sorted(only))}"


def _several(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _notes(a: Run, b: Run, found: Found) -> Iterator[str]:
    for run, name in ((a, found.a), (b, found.b)):
        for change in run.lock.get("changes", ()):
            keys = ", ".join(value["key"] for value in change["values"])
            where = (
                "before its first checkpoint"
                if change["checkpoint"] is None
                else f"at checkpoint {change['checkpoint']}"
            )
            yield f"{name}: {keys} changed on the way, {where}: the settings above are those since then"
        if run.inexact:
            yield f"{name} is not what its pipeline alone would make of it: see its inexact.jsonl"
    one, other = a.lock.get("environment", {}), b.lock.get("environment", {})
    if hidden := [key for key in one if key in other and one[key] != other[key]]:
        yield (
            f"both read {', '.join(hidden)} from the environment; whether it held the same cannot be told, as it is "
            "written down sealed"
        )


def _likely(found: Found) -> str:
    first, causes = found.diverged, [each for each in found.differs if each.because]
    if first is None:
        return ""
    names = list(dict.fromkeys(f"{each.section}: {each.key}" for each in causes))
    kinds = {each.section for each in causes}
    rounding = first.largest <= ROUNDING
    if not causes:
        return (
            "nothing that is written down differs, so some operation does not give the same bits each time: a GPU's "
            "without `deterministic: true`, or a reward, sampler or environment elsewhere"
        )
    if len(names) == 1 and causes[0].section == "settings":
        return f"{causes[0].key}: nothing else differs that numbers depend on"
    if len(names) == 1 or (len(kinds) == 1 and kinds <= {"versions", "code", "machine"}):
        what = names[0] if len(names) == 1 else f"{kinds.pop()} ({_several([each.key for each in causes])})"
        return f"{what}: nothing else differs that numbers depend on"
    if rounding and kinds <= {"versions", "machine"}:
        return "versions and machine: the first difference is as small as rounding makes it"
    return f"{len(names)} things differ, so which of them it is cannot be told from these two"


def counted(counts: Sequence[int]) -> str:
    """Iterations and evaluations, in words."""
    words = ("iteration", "evaluation")
    return " and ".join(
        f"{n} {word}{'' if n == 1 else 's'}" for n, word in zip(counts, words, strict=True) if n
    )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Setting) else value
