"""A run from its first phase to its last: commit points, resuming, the exported model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Pipeline
from rlalign.config.registry import Registry
from rlalign.data.example import Example
from rlalign.errors import CheckpointError, ConfigError, RLAlignError
from rlalign.records import checkpoint
from rlalign.records.environment import make_lock, refuse_if_different
from rlalign.records.logs import Logs
from rlalign.records.rundir import RunDir
from rlalign.running.display import Display, make_display
from rlalign.running.evaluation import evaluate
from rlalign.running.models import fingerprint, save_folder
from rlalign.running.phase import PhaseRun
from rlalign.running.view import open_phase
from rlalign.running.workspace import Workspace

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
        pipeline = load_pipeline(directory.pipeline, registry=registry)
        session = Session(pipeline, registry, display or make_display())
        session.reopen(directory, inexact=inexact, previous=previous)
    except BaseException:
        directory.close()
        raise
    return session


class Session(Workspace):
    """A run in its folder: phases in turn, commit points, resuming, the exported model."""

    def __init__(self, pipeline: Pipeline, registry: Registry, display: Display) -> None:
        super().__init__(pipeline, registry, display)
        self._is_over = False
        self._optimiser_state: Mapping[str, Any] | None = None
        self._committed: int | None = None
        self._committed_at = 0.0
        self._commit_cost = 0.0

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
            seed=self.pipeline.seed,
            deterministic=self.pipeline.deterministic,
            distributions={offer.distribution for _, offer in offers if offer},
            modules={module for module, offer in offers if not offer},
            data=data,
            models={"policy": fingerprint(self.models.policy)},
            device=self.device.type,
            dtype=str(self.models.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            budgets=budgets,
        )

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
        phase = open_phase(self, self.wirings[place], repeat, place)
        state, self._phase_state = self._phase_state, None
        phase.start(state)
        if self._optimiser_state and phase.learner is not None:
            phase.learner.optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        label = phase.phase.name if self.pipeline.repeat == 1 else f"{phase.phase.name} ({repeat + 1})"
        self.display.phase(label, phase.iterations)
        for iteration in iterate(phase):
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

    def _export(self) -> None:
        save_folder(self.models.policy, self.dir.model, card(self.dir.name, self.pipeline, self._last))


def iterate(phase: PhaseRun) -> Iterator[int]:
    """Run the phase, evaluating now and then; yields after every iteration, at a point that can be committed."""
    asked = phase.phase.evaluate
    if phase.iteration == 0 and asked is not None:
        evaluate(phase)
    while not phase.done:
        metrics = phase.one_iteration()
        phase.log(metrics)
        phase.session.display.iteration(phase.iteration, metrics)
        if asked is not None and (phase.done or (asked.every and phase.iteration % asked.every == 0)):
            evaluate(phase)
        if phase.done:
            phase.models.check_guard()
        yield phase.iteration


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
