"""A run from its first phase to its last: commit points, resuming, the exported model."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlalign.columns import data_fingerprint
from rlalign.component import Component
from rlalign.display import Display, make_display
from rlalign.errors import CheckpointError, ConfigError, RLAlignError, blaming
from rlalign.examples import Joined, Without
from rlalign.models import Models, fingerprint, save_folder
from rlalign.phase import PhaseRun
from rlalign.pipeline import Item, Pipeline, config, places
from rlalign.pipeline.inherit import AGES
from rlalign.policy import Policy
from rlalign.randomness import Seeds
from rlalign.records import checkpoint
from rlalign.records.lock import make_lock, refuse_if_different
from rlalign.records.logs import Logs
from rlalign.records.rows import Rows
from rlalign.records.rundir import RunDir, write_atomic
from rlalign.registry import Registry
from rlalign.run import Run
from rlalign.types import Example, Rollout
from rlalign.wiring import Builder, Wiring, wire

SAVING_COST = 0.05
"""The share of the time that commit points may take unless the pipeline says how often to write them."""


class Interrupted(RLAlignError):
    """The run was asked to stop, and stopped at a commit point."""

    exit_code = 130


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    path: Path
    metrics: Mapping[str, float]
    """The last evaluation's, or without evaluation the last iteration's."""


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


def start(
    pipeline: Pipeline,
    registry: Registry | None = None,
    *,
    root: Path | str = "runs",
    name: str | None = None,
    display: Display | None = None,
) -> Session:
    """A new run in a folder of its own."""
    session = Session(pipeline, registry or Registry(), display or make_display())
    session.create(Path(root), name)
    return session


def resume(
    path: Path | str,
    registry: Registry | None = None,
    *,
    inexact: bool = False,
    previous: bool = False,
    display: Display | None = None,
) -> Session:
    """A run that goes on from its last commit point (`previous`: from the last but one that is whole)."""
    directory = RunDir.open(path)
    try:
        registry = registry or Registry()
        pipeline = config.load(directory.pipeline, registry=registry)
        session = Session(pipeline, registry, display or make_display())
        session.reopen(directory, inexact=inexact, previous=previous)
    except BaseException:
        directory.close()
        raise
    return session


class Session:
    """What outlives a phase: models, components, logs, the run directory."""

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
        self._is_over = False
        self._at = {"repeat": 0, "place": 0}
        self._phase_state: Mapping[str, Any] | None = None
        self._optimiser_state: Mapping[str, Any] | None = None
        self._committed: int | None = None
        self._committed_at = 0.0
        self._commit_cost = 0.0
        self._last: dict[str, float] = {}
        if pipeline.deterministic:  # cuBLAS reads it when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(pipeline.deterministic)
        self.models = Models(
            pipeline.policy,
            self.device,
            "float64" if "float64" in dtypes else "float32",
            lambda name: self.seeds.seed_forward("model", name),
        )

    # -- the run directory ----------------------------------------------------------------------------

    def create(self, root: Path, name: str | None) -> None:
        """Look at the data, build the policy, then claim a folder: a run that cannot begin leaves nothing."""
        self._check_data()
        self._build_policy()
        text = places.dump(places.escape(self.pipeline.resolved))
        self.dir = RunDir.create(root, self.pipeline.stem, name, pipeline=text, lock=self._lock({}))
        self.logs = Logs(self.dir.path)

    def reopen(self, directory: RunDir, *, inexact: bool, previous: bool) -> None:
        """Take up a run at its last commit point; without one it starts again, finished it stays as it is."""
        self.dir = directory
        self.logs = Logs(directory.path)
        saved = self._commit_point(previous)
        if saved is not None and not previous and directory.model.exists():
            self._is_over, self._last = True, saved.loop["last"]
            return
        self._build_policy()
        old = json.loads(directory.lock.read_text())
        if not inexact:
            refuse_if_different(old, self._lock(old["budgets"]), str(directory.path))
        shutil.rmtree(directory.model, ignore_errors=True)  # of a course that is left
        checkpoint.settle(directory.checkpoints, saved.index if saved else -1)
        self.logs.cut(saved.logs if saved else {})
        if saved is None:
            self.display.note("no commit point yet: the run starts again")
            return
        self._take_up(saved)
        loop = saved.loop
        self._committed = saved.index
        self._at = {"repeat": loop["repeat"], "place": loop["place"]}
        if loop["done"]:
            self._at["place"] += 1
        else:
            self._phase_state, self._optimiser_state = loop["phase"], saved.optimiser

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

    def _commit_point(self, previous: bool) -> checkpoint.Checkpoint | None:
        """The last one, or the last whole one before it."""
        found = checkpoint.find(self.dir.checkpoints)
        if not previous:
            return checkpoint.read(self.dir.checkpoints, found[-1]) if found else None
        earlier = checkpoint.whole_before(self.dir.checkpoints, found[-1]) if found else None
        if earlier is None:
            raise CheckpointError(
                f"{self.dir.path}: there is no whole commit point before the last; leave out --previous"
            )
        return checkpoint.read(self.dir.checkpoints, earlier)

    def _check_data(self) -> None:
        for wiring in self.wirings:
            phase = wiring.phase
            splits = {phase.evaluate.split} if phase.evaluate else set()
            if phase.origin is None or phase.origin.original:
                splits.add("train")
            for split in sorted(splits):
                data, who = self.split(wiring, split), f"{phase.task.place}: task `{phase.task.name}`"
                if len(data) == 0:
                    raise ConfigError(f"{who} has no examples in `{split}`")
                if not isinstance(data[0], Example):
                    raise ConfigError(f"{who} must give Examples, got a {type(data[0]).__name__}")
            source = wiring.source
            logged = "logged" in (source.item.component, *source.component.parts)
            if logged and phase.origin is None and not self.split(wiring, "train")[0].responses:
                raise ConfigError(
                    f"{source.item.place}: responses come from the log here, and the first example of task "
                    f"`{phase.task.name}` has none; say `responses: sampled`, or take a task with logged responses"
                )

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

    def _lock(self, budgets: Mapping[str, Any]) -> dict[str, Any]:
        items = [self.pipeline.policy]
        for wiring in self.wirings:
            items += [m.item for m in (*wiring.members, *wiring.evaluators)]
            items += [spec.item for spec in wiring.phase.models.values() if spec.item]
        folder = Path(self.pipeline.resolved["folder"])
        offers = [(item.cls.__module__, self.registry.load(item.component, folder).offer) for item in items]
        data = {
            f"{w.phase.task.name}/train": self.data_fingerprint(w, self.split(w, "train"))
            for w in self.wirings
            if w.phase.origin is None or w.phase.origin.original
        }
        for item in items:  # what options found out for themselves, such as the hash of a user's file
            for name in type(item.options).model_computed_fields:
                data[f"{item.name}.{name}"] = str(getattr(item.options, name))
        return make_lock(
            self.pipeline,
            distributions={offer.distribution for _, offer in offers if offer},
            modules={module for module, offer in offers if not offer},
            data=data,
            models={"policy": fingerprint(self.models.policy)},
            device=self.device.type,
            dtype=str(self.models.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            budgets=budgets,
        )

    # -- data -----------------------------------------------------------------------------------------

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

    # -- components -----------------------------------------------------------------------------------

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

    # -- running --------------------------------------------------------------------------------------

    def run(self) -> Finished:
        """All phases that are still to be done."""
        self.display.started(self.dir.name, self.dir.path, [p.name for p in self.pipeline.phases])
        self._committed_at = time.perf_counter()
        try:
            if self._is_over:
                self.display.note(f"{self.dir.path}: this run is finished; its model is in {self.dir.model}")
                return Finished(self.dir.path, self._last)
            for repeat in range(self._at["repeat"], self.pipeline.repeat):
                first = self._at["place"] if repeat == self._at["repeat"] else 0
                for place in range(first, len(self.wirings)):
                    self._at = {"repeat": repeat, "place": place}
                    self._run_phase(repeat, place)
                self._at = {"repeat": repeat + 1, "place": 0}
            self._export()
            self.display.finished(
                {
                    "folder": str(self.dir.path),
                    "model": str(self.dir.model),
                    "curves": f"tensorboard --logdir {self.dir.path}",
                }
            )
            return Finished(self.dir.path, self._last)
        finally:
            self.display.close()
            self.logs.close()
            self.dir.close()

    def _run_phase(self, repeat: int, place: int) -> None:
        phase = PhaseRun(self, self.wirings[place], repeat, place)
        state, self._phase_state = self._phase_state, None
        phase.start(state)
        if self._optimiser_state and phase.learner is not None:
            phase.learner.optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        label = phase.phase.name if self.pipeline.repeat == 1 else f"{phase.phase.name} ({repeat + 1})"
        self.display.phase(label, phase.iterations)
        for iteration in phase.iterate():
            if phase.done or self.stopping or self._due(phase, iteration):
                self._commit(phase)
            if self.stopping and not self._over(phase):
                raise Interrupted(
                    f"stopped after iteration {phase.iteration} of {phase.phase.name}, and saved; "
                    f"go on with `rlalign run --resume {self.dir.path}`"
                )
        if phase.ending:
            self.display.note(f"{phase.phase.name} ended: {phase.ending}")
        self.step, self.budget, self.head_chunk = phase.step, phase.engine.budget, phase.engine.head_chunk
        self.ticks += phase.iteration

    def _over(self, phase: PhaseRun) -> bool:
        last_place = phase.place == len(self.wirings) - 1
        return phase.done and last_place and phase.repeat == self.pipeline.repeat - 1

    def _due(self, phase: PhaseRun, iteration: int) -> bool:
        every = self.pipeline.checkpoints.every
        if every is not None:
            return iteration % every == 0
        return self._commit_cost <= SAVING_COST * (time.perf_counter() - self._committed_at)

    def _commit(self, phase: PhaseRun) -> None:
        started = time.perf_counter()
        index = self.ticks + phase.iteration
        optimiser = phase.learner.optimiser.state_dict() if phase.learner and not phase.done else {}
        loop = {
            "repeat": phase.repeat,
            "place": phase.place,
            "done": phase.done,
            "step": phase.step,
            "ticks": self.ticks + (phase.iteration if phase.done else 0),
            "phase": phase.state(),
            "recipes": self.models.recipes,
            "last": self._last,
        }
        path = checkpoint.write(
            self.dir.checkpoints,
            index,
            models=self.models.state(),
            optimiser=optimiser,
            components=self._component_states(),
            loop=loop,
            logs=self.logs.sizes(),
            keep=self.pipeline.checkpoints.keep,
            previous=self._committed,
        )
        self._committed = index
        self._committed_at = time.perf_counter()
        self._commit_cost = self._committed_at - started
        self.display.saved(path)

    def remember(self, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        """The figures a finished run reports: its last evaluation's, or its last iteration's."""
        if evaluation or not any(name.startswith("eval/") for name in self._last):
            self._last = {name: value for name, value in metrics.items() if not name.startswith("time/")}

    def _export(self) -> None:
        save_folder(self.models.policy, self.dir.model, card(self.dir.name, self.pipeline, self._last))


def _device(asked: str) -> torch.device:
    if asked != "auto":
        device = torch.device(asked)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device: {asked}: no such device here; `device: auto` takes what there is")
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def card(
    name: str,
    pipeline: Pipeline,
    metrics: Mapping[str, float],
    origin: str = "The pipeline and the exact environment lie beside this folder (`pipeline.yaml`, `lock.json`).",
) -> str:
    """What a stranger should know of an exported model."""
    methods = ", ".join(item.component for phase in pipeline.phases for item in phase.algorithm)
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()))
    table = f"\n| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    return (
        f"# {name}\n\nTrained with rlalign {metadata.version('rlalign')}: {methods}, seed {pipeline.seed}. "
        f"{origin}\n{table}"
    )
