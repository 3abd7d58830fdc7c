"""What outlives a phase: pipeline, models, components, data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlalign.config.inherit import AGES
from rlalign.config.pipeline import Item, Pipeline
from rlalign.config.registry import Registry
from rlalign.data.example import Example, Joined, Without
from rlalign.data.rollout import Rollout
from rlalign.errors import ConfigError, blaming
from rlalign.interface.component import Component
from rlalign.interface.policy import Policy
from rlalign.interface.run import Run
from rlalign.randomness import Seeds
from rlalign.records import checkpoint
from rlalign.records.columns import data_fingerprint
from rlalign.records.logs import Logs
from rlalign.records.rows import Rows
from rlalign.records.rundir import RunDir, write_atomic
from rlalign.running.display import Display
from rlalign.running.models import Models
from rlalign.running.wiring import Builder, Wiring, wire


def wire_all(pipeline: Pipeline, registry: Registry) -> tuple[list[Wiring], Builder]:
    """Build and connect the components of all phases, before any model loads."""
    builder = Builder(registry)
    wirings = [wire(phase, builder) for phase in pipeline.phases]
    used = {name for wiring in wirings for name in wiring.models}
    for phase in pipeline.phases:
        if unused := sorted(set(phase.models) - used):
            who = "no component" if len(wirings) == 1 else "no component of any phase"
            raise ConfigError(f"{phase.place}: models.{unused[0]}: {who} uses a model `{unused[0]}`")
        for name, spec in phase.models.items():
            policy = pipeline.policy.build() if spec.dtype and spec.of in (None, *AGES) else None
            if isinstance(policy, Policy) and policy.shares:
                raise ConfigError(
                    f"{phase.place}: models.{name}.dtype: copies of this policy share its network already (LoRA), "
                    "so that there are no weights to hold in another precision; leave it out"
                )
    return wirings, builder


class Workspace:
    """What outlives a phase: models, components, logs, data. When to commit is none of its business."""

    dir: RunDir
    logs: Logs

    def __init__(self, pipeline: Pipeline, registry: Registry, display: Display) -> None:
        self.pipeline = pipeline
        self.registry = registry
        self.display = display
        self.wirings, self.builder = wire_all(pipeline, registry)
        self.seeds = Seeds(pipeline.seed)
        self.device = _device(pipeline.device)
        dtypes = {phase.train.dtype for phase in pipeline.phases}
        if "float64" in dtypes and len(dtypes) > 1:
            raise ConfigError("train.dtype: float64 in one phase means float64 in all")
        self.budget = 16384 if self.device.type == "cpu" else 65536
        self.head_chunk = 256 if self.device.type == "cpu" else 2048
        self.step = 0
        self.ticks = 0
        """Iterations of the phases that are over."""
        self.stopping = False
        self._set_up: set[int] = set()
        self._splits: dict[tuple[int, str], Sequence[Example]] = {}
        self._fingerprints: dict[int, str] = {}
        self._restored: dict[str, Any] = {}
        """States from the commit point, of components that were not set up yet."""
        self._at = {"repeat": 0, "place": 0}
        self._phase_state: Mapping[str, Any] | None = None
        self._last: dict[str, float] = {}
        torch.use_deterministic_algorithms(pipeline.deterministic)
        self.models = Models(
            pipeline.policy,
            self.device,
            "float64" if "float64" in dtypes else "float32",
            lambda name: self.seeds.seed_forward("model", name),
        )

    def _take_up(self, saved: checkpoint.Checkpoint) -> None:
        """The models as they were, and all that is known of the phases before."""
        loop = saved.loop
        self.models.load_state(
            loop["recipes"],
            {name: self._item_of(recipe) for name, recipe in loop["recipes"].items()},
            {name: state for name, (_, state) in saved.models.items()},
            {name: version for name, (version, _) in saved.models.items()},
        )
        self._restored = dict(saved.components)
        self.step, self.ticks, self._last = loop["step"], loop["ticks"], loop["last"]
        self.budget, self.head_chunk = loop["phase"]["budget"], loop["phase"]["head_chunk"]

    def _build_policy(self) -> None:
        specs = [spec for phase in self.pipeline.phases for spec in phase.models.values()]
        policy = self.pipeline.policy
        with blaming(f"{policy.place}: policy `{policy.name}`"):
            self.models.build_policy(keep_start=any(spec.of == "start" for spec in specs))

    def _item_of(self, recipe: Mapping[str, Any]) -> Item | None:
        specs = [spec.item for phase in self.pipeline.phases for spec in phase.models.values() if spec.item]
        for item in specs:
            if item.component == recipe["by"] and item.options.model_dump_json() == recipe["with"]:
                return item
        return None

    def split(self, wiring: Wiring, split: str) -> Sequence[Example]:
        key = (id(wiring.task), split)
        if key not in self._splits:
            task = wiring.phase.task
            with blaming(f"{task.place}: task `{task.name}`, asked for its examples of `{split}`,"):
                found = wiring.task.examples(split)
            self._splits[key] = self._readable(found, split)
        return self._splits[key]

    def _readable(self, examples: Sequence[Example], split: str) -> Sequence[Example]:
        """Those of a split that the policy can read; says how many it cannot."""
        who = f"policy `{self.pipeline.policy.name}`"
        place = self.pipeline.policy.place
        with blaming(f"{place}: {who}, reading the prompts of `{split}`,"):
            refused = self.models.opened().refuse(examples)
        if not refused:
            return examples
        of = f"of {len(examples):,} examples of `{split}`"
        first = min(refused)
        why = f"the first is `{examples[first].id}`: {refused[first]}"
        if len(refused) == len(examples):
            raise ConfigError(f"{place}: {who} can read none {of}; {why}")
        self.display.note(f"{who} leaves out {len(refused):,} {of}; {why}")
        return Without(examples, refused)

    def training_data(self, wiring: Wiring) -> Sequence[Example]:
        """The task's training examples, or what an earlier phase wrote down."""
        origin = wiring.phase.origin
        if origin is None:
            return self.split(wiring, "train")
        path = self.dir.path / self.rows_file(self._at["repeat"], origin.phase)
        return Joined(Rows(path), self.split(wiring, "train")) if origin.original else Rows(path)

    def data_fingerprint(self, wiring: Wiring, data: Sequence[Example]) -> str:
        if data is not self._splits.get((id(wiring.task), "train")):
            return data_fingerprint(data)
        if id(wiring.task) not in self._fingerprints:
            self._fingerprints[id(wiring.task)] = wiring.task.fingerprint("train") or data_fingerprint(data)
        return self._fingerprints[id(wiring.task)]

    def is_read_later(self, phase: str) -> bool:
        return any(p.origin is not None and p.origin.phase == phase for p in self.pipeline.phases)

    def rows_file(self, repeat: int, phase: str) -> str:
        return f"rows/{phase}-{repeat + 1}.jsonl"

    def keep_bad(self, rollout: Rollout, tensors: Mapping[str, Tensor]) -> Path:
        """Write down a batch that cannot be learned from, for whoever looks into it."""
        folder = self.dir.path / "bad-batch"
        folder.mkdir(exist_ok=True)
        held = {
            "actions": rollout.actions_NT,
            "mask": rollout.mask_NT,
            "logprobs": rollout.logprobs_NT,
            **tensors,
        }
        checkpoint.save_tensors(folder / "batch.safetensors", held)
        texts = [
            {"example": rollout.examples[g].id, "prompt": rollout.examples[g].prompt, "response": text}
            for g, text in zip(rollout.group_N.tolist(), rollout.texts, strict=True)
        ]
        write_atomic(folder / "texts.json", json.dumps(texts, indent=1, default=str))
        return folder

    def set_up(self, component: Component, run: Run) -> None:
        """`setup`, once in the life of a component."""
        if id(component) not in self._set_up:
            self._set_up.add(id(component))
            self.seeds.seed_forward("setup", component.name)
            members = [m for w in self.wirings for m in (*w.members, *w.evaluators)]
            place = next(m.item.place for m in members if m.component is component)
            with blaming(f"{place}: `setup` of `{component.name}`"):
                component.setup(run)

    def restore_components(self) -> None:
        """Give the components that are set up by now the state they had at the commit point."""
        for key, component in self._keyed_components():
            if id(component) in self._set_up and key in self._restored:
                component.load_state_dict(self._restored.pop(key))

    def _component_states(self) -> dict[str, Any]:
        """Of every component that was ever set up; whose phase is yet to come in this process keeps its old one."""
        ready = [(key, c) for key, c in self._keyed_components() if id(c) in self._set_up]
        return {**self._restored, **{key: c.state_dict() for key, c in ready}}

    def _keyed_components(self) -> list[tuple[str, Component]]:
        return [(f"{i}:{c.name}", c) for i, c in enumerate(self.builder.built.values())]

    def remember(self, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        """The figures a finished run reports: its last evaluation's, or its last iteration's."""
        if evaluation or not any(name.startswith("eval/") for name in self._last):
            self._last = {name: value for name, value in metrics.items() if not name.startswith("time/")}


def _device(asked: str) -> torch.device:
    if asked != "auto":
        device = torch.device(asked)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device: {asked}: no such device here; `device: auto` takes what there is")
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
