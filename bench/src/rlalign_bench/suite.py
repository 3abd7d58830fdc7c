"""What a suite's file says: a study's file, whose worlds are tasks and whose arms are algorithms, and a bit more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from pydantic import Field, model_validator

from rlalign_bench.entry import ALLOWED, NAME
from rlalign_study import plan
from rlalign_study.file import Overrides, Part, Study


class Score(Part):
    """The one metric that a task is ranked by, and its scale."""

    metric: str
    worst: float
    """The value that counts as 0: that of the policy that every run begins with, say."""
    best: float
    """The value that counts as 1. Below `worst`, less is better."""

    def scaled(self, value: float) -> float:
        """The value on the scale from 0 to 1; it may lie outside."""
        return (value - self.worst) / (self.best - self.worst)


class Bench(Part):
    """What a suite says beside what a study does."""

    scores: dict[str, Score]
    """By task."""
    final: str = ""
    """The measurement that entries are made of; by default the first one."""
    kl: str | None = None
    """The metric that is the KL to the policy a run began with."""


class Suite(Study):
    """A suite."""

    bench: Bench = Field()

    @model_validator(mode="before")
    @classmethod
    def _each(cls, said: Any) -> Any:
        """Of the measurement that counts every value is kept."""
        if not isinstance(said, dict) or not isinstance(final := said.get("final"), dict) or not final:
            raise ValueError("`final` needs a measurement: entries are made of one")
        asked = said.get("bench")
        name = (asked.get("final") if isinstance(asked, dict) else None) or next(iter(final))
        if name not in final:
            raise ValueError(f"bench.final: there is no `{name}` in `final` (there are: {', '.join(final)})")
        said = {**said, "final": {**final, name: {**(final[name] or {}), "each": True}}}
        return {**said, "bench": {**asked, "final": name}} if isinstance(asked, dict) else said

    def _unknown(self) -> Iterator[tuple[tuple[str, ...], str]]:
        yield from super()._unknown()
        for section, name in (*product(["worlds"], self.worlds), *product(["arms"], self.arms)):
            if not NAME.fullmatch(name):
                yield (section, name), f"no entry can be of `{name}`: a name has {ALLOWED}"
        for task in self.worlds:
            known = self.metrics_of(task)
            if task not in self.bench.scores:
                yield ("bench", "scores"), f"says nothing of the task `{task}`: which metric is it ranked by?"
            elif (metric := self.bench.scores[task].metric) not in known:
                yield (
                    ("bench", "scores", task),
                    f"there is no metric `{metric}` (there are: {', '.join(known)})",
                )
            if self.bench.kl is not None and self.bench.kl not in known:
                yield ("bench", "kl"), f"`{task}` has no metric `{self.bench.kl}`"
        for task in set(self.bench.scores) - set(self.worlds):
            yield (
                ("bench", "scores", task),
                f"there is no task `{task}`; the tasks are {', '.join(self.worlds)}",
            )
        for task, score in self.bench.scores.items():
            if score.worst == score.best:
                yield ("bench", "scores", task), "`worst` and `best` are the same: nothing could be ranked"
        if self.hooks.of_samples is not None:
            yield ("code",), "`of_samples` measures all responses at once, and entries need values by example"
        for task, name in product(self.worlds, self.arms) if self.bench.kl else ():
            if name in self.worlds[task].without:
                continue
            first = plan.main(self, task, {name: plan.settings(self, task, name)[0]})[0]
            if not from_start(first.pipeline):
                yield (
                    ("arms", name),
                    "has several phases, and so its KL would be to the model that the last one began with; "
                    "say `models: {reference: {of: start}}` in `pipeline`, so that every KL is to the same policy",
                )
                break

    @property
    def tasks(self) -> list[str]:
        return list(self.worlds)

    @property
    def algorithms(self) -> list[str]:
        return list(self.arms)

    def measurement_of(self, task: str) -> Overrides:
        """What the measurement of entries changes in `evaluate`: the same for every run of a task."""
        return self.final[self.bench.final].evaluate | self.evaluate


def from_start(pipeline: Mapping[str, Any]) -> bool:
    """Whether the KL of a run is to the policy that it began with, and not to that of its last phase."""
    phases = pipeline.get("phases") or [{}]
    models = {**(pipeline.get("models") or {}), **(phases[-1].get("models") or {})}
    return len(phases) == 1 or models.get("reference") == {"of": "start"}
