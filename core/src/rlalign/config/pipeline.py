"""The pipeline as types: what a YAML file says once defaults, phases and components are resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from rlalign.data.settings import Sampling, Save, Train
from rlalign.interface.component import Component


@dataclass(frozen=True)
class Item:
    """One entry of `rewards`, `algorithm`, `responses` or `evaluate.use`: a component and how it is used."""

    name: str
    component: str
    options: BaseModel
    cls: type[Any]
    weight: float = 1.0
    source: str | None = None
    place: str = field(default="", compare=False)

    def build(self) -> Component:
        """The component object; it opens nothing yet."""
        built: Component = self.cls(self.options)
        built.name = self.name
        return built


@dataclass(frozen=True)
class From:
    """`task: {from: grow, with: [original]}`: a finished phase's scored responses as logged data."""

    phase: str
    original: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """`models: {reference: {of: start, dtype: bfloat16}}` or `models: {value: {value-head: {trunk: own}}}`."""

    of: str | None = None
    dtype: str | None = None
    item: Item | None = None


@dataclass(frozen=True)
class Evaluate:
    """`evaluate`: what is measured, on what, how often. Without it nothing is."""

    every: int | None
    split: str
    examples: int
    use: tuple[Item, ...]
    generation: Mapping[str, Any]


@dataclass(frozen=True)
class Phase:
    """One phase with every default filled in."""

    name: str
    task: Item
    origin: From | None
    rewards: tuple[Item, ...]
    algorithm: tuple[Item, ...]
    responses: Item | None
    generation: Sampling
    train: Train
    evaluate: Evaluate | None
    models: Mapping[str, ModelSpec]
    place: str = field(default="", compare=False)
    places: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where options are written, such as `generation.greedy` and `models.mask`."""

    def place_of(self, option: str) -> str:
        """Where an option is written, or else the phase."""
        return self.places.get(option, self.place)


@dataclass(frozen=True)
class Pipeline:
    """A whole file."""

    stem: str
    policy: Item
    phases: tuple[Phase, ...]
    repeat: int
    seed: int
    device: str
    deterministic: bool
    checkpoints: Save
    resolved: Mapping[str, Any]
    """The tree after interpolation and command line, as it is written into the run directory."""
