"""The pipeline as types: what each part of a file may say, and the whole with every default filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from rlalign.config import clusters
from rlalign.config.places import Keys
from rlalign.config.words import found
from rlalign.data import limits
from rlalign.data.settings import Bytes, Options, Positive, Sampling, Save, Train
from rlalign.errors import ConfigError
from rlalign.interface.component import Component

MERGED_SECTIONS = ("train", "generation", "evaluate", "models")
"""Sections that a phase inherits key by key."""
REPLACED_SECTIONS = ("task", "rewards", "responses", "algorithm", "observers")
"""Sections that a phase inherits whole or not at all."""
ALTERNATIVES = {
    "iterations": "passes",
    "passes": "iterations",
    "minibatches": "minibatch",
    "minibatch": "minibatches",
}
"""`train` holds one of each pair: the one said last displaces the other."""
COPY_TIMES = ("start", "phase", "iteration")
"""When the policy may be copied."""
SAMPLER = "sampler"
"""What `models` calls who samples in the policy's place."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""What a name may be: it becomes part of a file name, of a metric's and of a command line."""


class Workers(Options):
    """`workers: {least: 2, most: 64}`: as many processes as there is work for."""

    least: Positive = Field(1, description="how many there always are")
    most: Positive = Field(
        description="how many there may be: while parts of a batch have waited for a second, others are begun for them"
    )
    idle: float = Field(
        600.0,
        gt=0,
        le=limits.COUNT,
        description="after how many seconds without a question one is given back, but for the `least`",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.least > self.most:
            raise ValueError(f"`least: {self.least}` is more than `most: {self.most}`")
        return self

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


def _in_full(said: Any) -> Any:
    if type(said) is int:
        return {"least": said, "most": said}
    if not isinstance(said, dict | Workers):
        raise ValueError(f"expected a whole number, or `{{least: 2, most: 64}}`, found {found(said)}")
    return said


class Elsewhere(Options):
    """Where another process is."""

    cluster: str | dict[str, Any] | None = Field(
        None, description="a cluster whose machines it is on: `ray`, or `ray: {…}` with its options"
    )
    memory: Bytes | None = Field(
        None,
        description="what each process may hold, in bytes or as `4 GiB`; then it is ended; null: no limit",
    )

    @model_validator(mode="after")
    def _on_a_cluster(self) -> Self:
        if self.cluster and self.memory:
            raise ValueError("`memory` limits a process on this machine; leave it out beside `cluster`")
        if self.cluster:
            try:
                clusters.find(self.cluster, "cluster")
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self

    def processes(self, count: int | Workers, whose: str) -> str:
        """So many, in words."""
        many = f"{'a process' if str(count) == '1' else f'{count} processes'} of {whose} own"
        return many + (f" on {clusters.parts(self.cluster, 'isolate')[0]}" if self.cluster else "")


class Isolate(Elsewhere):
    """`isolate`: the reward is computed in another process, which a run outlives."""

    at: str | None = Field(
        None,
        pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$",
        description="`host:port` of an `rlalign serve-reward`; null: a process of its own on this machine",
    )
    workers: Annotated[Workers, BeforeValidator(_in_full, json_schema_input_type=int | Workers)] = Field(
        1,
        validate_default=True,
        description="how many processes share a batch, by groups; `{least: 2, most: 64}`: as many as it has work for",
    )
    seconds: float = Field(
        600.0, gt=0, le=limits.COUNT, description="how long one batch may take; then the process is ended"
    )
    retries: int = Field(
        2,
        ge=0,
        le=100,
        description="how often a batch that failed is asked for again, after 1, 2, 4, … seconds (30 at most)",
    )

    @model_validator(mode="after")
    def _one_server(self) -> Isolate:
        if self.at and (self.cluster or self.workers.most > 1):
            raise ValueError("`at` names a server, which is one process: leave out `cluster` and `workers`")
        if self.at and self.memory:
            raise ValueError("`memory` limits a process on this machine; leave it out beside `at`")
        return self

    @property
    def where(self) -> str:
        """In words, for messages."""
        return f"at {self.at}" if self.at else f"in {self.processes(self.workers, 'its')}"


class Apart(Elsewhere):
    """`isolate` of a task: the episodes of an environment live in other processes, which a run outlives."""

    workers: int = Field(1, gt=0, le=1_000, description="processes among which episodes are dealt out")
    seconds: float = Field(
        30.0, gt=0, le=limits.COUNT, description="how long one turn may take; then its process is ended"
    )
    on_bad_episode: Literal["stop", "drop"] = Field(
        "stop",
        description="an episode that failed, was played again in another process, and failed again: `stop` the run, or "
        "`drop` its whole group, at most 5 % of an iteration's",
    )


class ItemSettings(Options):
    """What an item says beside its component."""

    weight: float = Field(1.0, description="factor of the reward or of the loss")
    name: str | None = Field(None, alias="as", pattern=NAME_PATTERN, description="the item's name")
    source: str | None = Field(None, description="only responses from this source")
    isolate: Isolate | None = Field(
        None, description="a reward or metric in a process of its own: `true`, or limits (docs/serving.md)"
    )

    @field_validator("isolate", mode="before", json_schema_input_type=bool | Isolate | None)
    @classmethod
    def _said_shortly(cls, said: Any) -> Any:
        return ({} if said else None) if isinstance(said, bool) else said


ITEM_KEYS = tuple(field.alias or name for name, field in ItemSettings.model_fields.items())


class Item(ItemSettings):
    """A component that the file names, with its options and how it is used."""

    name: str
    component: str
    options: BaseModel
    cls: type[Any]
    place: str = ""
    apart: Apart | None = None
    """`isolate` of a task."""
    private: Mapping[Keys, str] = {}
    """Options that hold something of the environment, and what the file says there."""
    _next: Component | None = PrivateAttr(None)

    @property
    def identity(self) -> str:
        """The options as text that may be written down; what is private in them as the file says it."""
        said = self.options.model_dump_json()
        if not self.private:
            return said
        data = {"": json.loads(said)}
        for keys, expression in self.private.items():
            *above, last = ("", *keys)
            holder: Any = data
            with suppress(LookupError, TypeError):
                for key in above:
                    holder = holder[key]
                holder[last] = expression
        return json.dumps(data[""])

    def peek(self) -> Component:
        """The component that the next `build` gives, for what it declares."""
        if self._next is None:
            built: Component = self.cls(self.options)
            built.name = self.name
            self._next = built
        return self._next

    def build(self) -> Component:
        """A component that nobody else has; it opens nothing yet."""
        built, self._next = self.peek(), None
        return built


class Origin(Options):
    """`task: {from: grow, with: [original]}`: a finished phase's scored responses as logged data."""

    phase: str = Field(alias="from", description="an earlier phase, whose responses become the data")
    others: tuple[Literal["original"], ...] = Field((), alias="with", description="what joins them")

    @property
    def original(self) -> bool:
        return "original" in self.others


class ModelSpec(Options):
    """`models: {reference: {of: start, dtype: bfloat16}}` or `models: {value: {value-head: {trunk: own}}}`."""

    of: str | None = Field(
        None,
        description="the policy as it was at the `start` of the run, at that of each `phase`, or of each "
        "`iteration`; or a model folder; null: a phase's for `reference`, for others when they are first needed",
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="how its weights are held; null: as the run's. bfloat16 takes half of float32's memory",
    )
    item: Item | None = None


class Evaluate(Options):
    """`evaluate`: what is measured, on what, how often. Without it nothing is."""

    every: Positive | None = Field(None, description="iterations in between; null: start and end only")
    split: str = Field("val", description="the task's split")
    examples: Positive = Field(256, description="examples, from the start of the split")
    show: Positive = Field(
        8,
        description="responses, the first ones, that samples.jsonl gets each time; learned.jsonl as many whole groups "
        "as these are enough for, or a part of one",
    )
    use: tuple[Item, ...] = Field(
        None,  # type: ignore[arg-type]  # the file may leave it out
        description="names of rewards, or components; null: the phase's rewards",
    )
    generation: Sampling = Field(Sampling(), description="how responses are sampled, else as the task says")


class Phase(Options):
    """One phase with every default filled in."""

    name: str
    task: Item
    origin: Origin | None
    rewards: tuple[Item, ...]
    algorithm: tuple[Item, ...]
    responses: Item
    generation: Sampling
    train: Train
    evaluate: Evaluate | None
    models: Mapping[str, ModelSpec]
    observers: tuple[Item, ...] = ()
    place: str = ""
    places: Mapping[str, str] = {}
    """Where the keys of sections are written, such as `generation.greedy` and `models.mask`."""

    def place_of(self, option: str) -> str:
        """Where an option is written, or else the phase."""
        return self.places.get(option, self.place)


class Distributed(Options):
    """`distributed`: how weights lie on the processes of a run; how many there are is said where it is started."""

    shard: bool | Literal["auto"] = Field(
        False,
        description="true: with several processes, the weights of transformers models and what the optimiser knows of "
        "them are cut over all of these; false: each process has all of it; auto: cut where that would not fit",
    )
    offload: bool = Field(
        False,
        description="with `shard`: between passes what is cut lies in the machine's memory, and the optimiser steps "
        "there; on one process, too",
    )


class PipelineSettings(Options):
    """What is said once for the whole pipeline, beside `policy` and `phases`."""

    repeat: Positive = Field(1, description="passes over the list of phases")
    seed: int = Field(0, ge=0, description="what every random number follows from")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    distributed: Distributed = Field(Distributed(), description="how weights lie on the processes of a run")
    deterministic: bool = Field(
        False,
        description="only operations that give the same bits each time, on a GPU too; any other is refused",
    )
    checkpoints: Save = Field(Save(), description="how often a checkpoint is written")
    folder: Path | None = Field(
        None,
        description="where relative paths and own modules are looked for; null: beside the file",
    )


class Pipeline(PipelineSettings):
    """A whole file."""

    stem: str
    policy: Item
    phases: tuple[Phase, ...]
    resolved: Mapping[str, Any]
    """The tree after interpolation and command line, as it is written into the run's folder."""
    environment: tuple[str, ...] = ()
    """The variables that interpolations read, without those of observers."""
    places: Mapping[str, str] = {}
    """Where what is said once is written, such as `device`."""


def without_observers(said: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a pipeline without what only watches it: all that numbers can depend on."""
    kept = {key: part for key, part in said.items() if key != "observers"}
    if isinstance(phases := kept.get("phases"), list):
        kept["phases"] = [without_observers(p) if isinstance(p, Mapping) else p for p in phases]
    return kept


def short(component: str) -> str:
    """A component's own name: `nlpo` of `some-distribution:nlpo`."""
    return component.rpartition(":")[2]
