"""What a study file says, as types. `Study.read` turns a file into them and says in which line it is wrong."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rlalign_study import core
from rlalign_study.core import ConfigError

Overrides = dict[str, Any]
"""`train.lr: 1e-3`: what `key=value` means on rlalign's command line."""
Axis = dict[str, Any]
"""Either one key and its values (`train.lr: [1e-4, 1e-3]`), or overrides by name."""
Seeds = Annotated[int, Field(gt=0)] | list[Annotated[int, Field(ge=0)]]
"""So many, counted from 0, or these."""
Name = Annotated[str, Field(pattern=r"^[^/\s]+$")]


class Part(BaseModel):
    """The base of all parts: what is misspelt is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))


class Arm(Part):
    """A method: what it changes in the pipeline."""

    set: Overrides = {}
    grid: dict[str, Axis] = {}
    seeds: Seeds | None = None


class Collapse(Part):
    """When a run counts as collapsed, by any point of its curve after the first."""

    metric: str
    gain: float = 0.1
    """A rise of `metric` above the start counts as a gain from this size."""
    kept: float = 0.5
    """The run collapsed if less than this share of its largest gain is left,"""
    fall: float | None = None
    """or if `metric` is further below the start than this,"""
    keep: dict[str, float] = {}
    """or if another metric is below this share of the start's,"""
    max: dict[str, float] = {}
    """or above this."""


class Require(Part):
    """What a setting must meet, in the mean of its runs, beside that none collapsed."""

    max: dict[str, float] = {}
    keep: dict[str, float] = {}
    """At least this share of the value that the curve starts with."""


class Budget(Part):
    """What a run may use up: it ends after the iteration that reaches this, and is measured where it then is."""

    tokens: float | None = Field(None, gt=0)
    """Of responses, sampled or logged."""
    seconds: float | None = Field(None, gt=0)
    """Processor time of training, evaluations on the way included."""

    @property
    def said(self) -> dict[str, float]:
        return {what: most for what, most in self if most is not None}


class World(Part):
    """A task with all that is the same for every arm in it."""

    set: Overrides = {}
    arms: dict[str, Overrides] = {}
    """What single arms change here only."""
    without: list[str] = []
    """Arms that make no sense here."""
    grid: dict[str, Axis] = {}
    seeds: Seeds | None = None
    metrics: dict[str, str | list[str]] = {}
    given: dict[str, Any] = {}
    require: Require | None = None
    collapse: Collapse | None = None
    budget: Budget | None = None


class Tuning(Part):
    """How settings are chosen: on seeds of its own, which are never reported."""

    seeds: Seeds
    best: str
    """The metric whose mean is to be highest, among the settings that qualify."""
    require: Require = Require()
    otherwise: Literal["highest", "least"] = "highest"
    """If no setting qualifies: the highest `best` all the same, or the least of `least`."""
    least: str | None = None
    evaluate: Overrides = {}


class Final(Part):
    """A measurement of a finished run."""

    evaluate: Overrides = {}
    at: str | None = None
    """Where this metric of the curve was highest (the start apart), not at the end."""
    tuning: bool = True
    """Whether tuning runs are measured so too."""
    each: bool = False
    """Whether rows keep what it finds to the bit, with one value an example where figures are such means."""


class Ablations(Part):
    """Arms at their tuned setting with one thing changed."""

    worlds: list[str]
    seeds: Seeds
    groups: dict[str, dict[str, dict[str, Overrides]]]
    """What is varied → arm → name of the setting → overrides; none at all means the arm as it is."""
    columns: dict[str, str] = {}


class Compare(Part):
    """Pairs of arms that are tested, and the measures they are tested by: each is a family of its own."""

    pairs: list[tuple[str, str | list[str]]]
    by: dict[str, str]

    @property
    def each(self) -> list[tuple[str, str]]:
        return [(a, b) for a, bs in self.pairs for b in ([bs] if isinstance(bs, str) else bs)]


class Stability(Part):
    """How much an arm's runs differ and how many collapsed, tested against one arm."""

    against: str
    of: str
    spread: bool = True
    """Whether equal spread is tested too."""
    own: bool = False
    """Whether to count collapses in the responses learned from too."""
    columns: dict[str, str] = {}


class Block(Part):
    """A table for a README: a row for each world and arm."""

    columns: dict[str, str]
    arms: list[str] = []
    """All if none is named."""
    answers: bool = False
    """Whether what the hook `answers` says stands under the table."""
    text: str = ""


class Plot(Part):
    """One figure: `curves` of metrics against x, `ends` of runs as points, or final values against an axis."""

    kind: Literal["curves", "ends", "tuning", "ablations"]
    x: str = "step"
    y: list[str] = []
    groups: dict[str, list[str]] = {}
    log: list[str] = []


class Study(Part):
    """A study file."""

    name: Name
    title: str
    pipeline: dict[str, Any]
    worlds: dict[Name, World]
    arms: dict[Name, Arm]
    seeds: Seeds
    grid: dict[str, Axis] = {}
    metrics: dict[str, str | list[str]]
    """Names for what an evaluation logs: `reward: toy-sentiment`; of a list the mean."""
    final: dict[str, Final] = {}
    evaluate: Overrides = {}
    """What the final measurements of reported runs change in `evaluate`."""
    tuning: Tuning | None = None
    ablations: Ablations | None = None
    collapse: Collapse | None = None
    compare: Compare | None = None
    stability: Stability | None = None
    interval: Literal["t", "bootstrap"] = "t"
    budget: Budget = Budget()
    tables: dict[str, dict[str, str]] = {}
    blocks: dict[str, Block] = {}
    plots: dict[str, Plot] = {}
    code: list[str] = []
    """Python files beside the study file: see `Hooks`."""
    given: dict[str, Any] = {}
    """What a study's own code is told, beside what the world says; column titles may hold it (`KL {kl_at}`)."""
    imports: list[str] = []
    """Modules that every run would import by itself: imported once, they make runs start sooner."""
    memory: float | None = Field(None, gt=0)
    """The most gigabytes a run may use."""
    seconds: float | None = Field(None, gt=0)
    """What a run takes, for the estimate before the first one is done."""
    results: str
    path: Path

    @classmethod
    def read(cls, path: Path) -> Self:
        """The study in a file; one ConfigError lists all that is wrong with it."""
        path = path.absolute()
        data, place = core.read_yaml(path)
        said = {
            "name": path.stem,
            "results": f"{path.stem}-results",
            "title": path.stem,
            **data,
            "path": path,
        }
        try:
            study = cls.model_validate(said)
        except ValidationError as error:
            raise ConfigError("\n".join(f"{place(e['loc'])}: {_told(e)}" for e in error.errors())) from None
        if problems := list(study._unknown()):
            raise ConfigError("\n".join(f"{place(keys)}: {text}" for keys, text in problems))
        return study

    @field_validator("worlds", "arms")
    @classmethod
    def _some(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("needs at least one")
        return value

    def _unknown(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Arms and worlds that are named somewhere and described nowhere: where, and what to say."""
        named: dict[tuple[str, ...], Iterable[str]] = {}
        for name, world in self.worlds.items():
            named |= {("worlds", name, "without"): world.without, ("worlds", name, "arms"): world.arms}
        named |= {("blocks", name, "arms"): block.arms for name, block in self.blocks.items()}
        if self.compare:
            named["compare", "pairs"] = chain.from_iterable(self.compare.each)
        if self.stability:
            named["stability", "against"] = [self.stability.against]
        if self.ablations:
            named["ablations", "groups"] = chain.from_iterable(self.ablations.groups.values())
            for name in set(self.ablations.worlds) - set(self.worlds):
                known = f"the worlds are {', '.join(self.worlds)}"
                yield ("ablations", "worlds"), f"there is no world `{name}`; {known}"
        for keys, arms in named.items():
            for arm in dict.fromkeys(arms):
                if arm not in self.arms:
                    yield keys, f"there is no arm `{arm}`; the arms are {', '.join(self.arms)}"

    @property
    def folder(self) -> Path:
        return self.path.parent

    def arms_of(self, world: str) -> list[str]:
        return [arm for arm in self.arms if arm not in self.worlds[world].without]

    def seeds_of(self, world: str, arm: str) -> list[int]:
        """An arm's seeds; what it says itself stands above what its world says, and that above the study."""
        return seeds(self.arms[arm].seeds or self.worlds[world].seeds or self.seeds)

    def require_of(self, world: str) -> Require:
        assert self.tuning is not None
        return self.worlds[world].require or self.tuning.require

    def collapse_of(self, world: str) -> Collapse | None:
        return self.worlds[world].collapse or self.collapse

    def budget_of(self, world: str) -> dict[str, float]:
        return (self.worlds[world].budget or self.budget).said

    def metrics_of(self, world: str) -> dict[str, str | list[str]]:
        return self.metrics | self.worlds[world].metrics

    def given_of(self, world: str) -> dict[str, Any]:
        return self.given | self.worlds[world].given

    def __getstate__(self) -> dict[Any, Any]:
        """For the processes of runs, which import the study's own files themselves."""
        state = super().__getstate__()
        return state | {"__dict__": {k: v for k, v in state["__dict__"].items() if k != "hooks"}}

    @cached_property
    def hooks(self) -> Hooks:
        return Hooks([self.folder / name for name in self.code])


class Hooks:
    """What a study's own Python files add. All of it is optional.

    `components`: component classes by name, for the study's pipelines.
    `prepare(ground)`: make what the runs of a world and seed begin with (a `worker.Ground`); returns metrics.
    `of_samples(rows)`: metrics of a final measurement, from its responses, in place of the usual ones.
    `of_run(run)`: further metrics of a finished run (a `worker.Done`).
    `derive(row, given)`: further metrics of a row of results, whenever it is read.
    `answers(worlds)`, `before_world(found)`: lines of Markdown for the report, from `analysis.Found`.
    """

    def __init__(self, files: list[Path]) -> None:
        known = {name: value for file in files for name, value in vars(module_of(file)).items()}
        self.components: Mapping[str, type[Any]] = known.get("components", {})
        self.prepare: Callable[[Any], dict[str, Any]] | None = known.get("prepare")
        self.of_samples: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = known.get("of_samples")
        self.of_run: Callable[[Any], dict[str, Any]] | None = known.get("of_run")
        self.derive: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = known.get("derive")
        self.answers: Callable[[Any], list[str]] | None = known.get("answers")
        self.before_world: Callable[[Any], list[str]] | None = known.get("before_world")


def module_of(file: Path) -> Any:
    """A study's own Python file, imported once."""
    name = "rlalign_study_file_" + re.sub(r"\W", "_", str(file))
    if name not in sys.modules:
        if not file.is_file():
            raise ConfigError(f"{file}: no such file; `code` names Python files beside the study file")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ConfigError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    return sys.modules[name]


def seeds(said: Seeds) -> list[int]:
    return list(range(said)) if isinstance(said, int) else said


def _told(error: Any) -> str:
    """`worlds.toy.sedes: this key is not known`"""
    where = ".".join(str(key) for key in error["loc"])
    text = {"extra_forbidden": "this key is not known", "missing": "is missing"}.get(
        error["type"], error["msg"].removeprefix("Value error, ")
    )
    return f"{where}: {text}"
