"""A run from its first phase to its last: begun, resumed, saved, exported."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Pipeline
from rlalign.config.registry import Registry
from rlalign.errors import CheckpointError, RLAlignError
from rlalign.randomness import global_seeds_kept
from rlalign.records import checkpoint
from rlalign.records.environment import differences, read_lock, refuse_changed
from rlalign.records.logs import Logs
from rlalign.records.rundir import RunDir, lock_text, write_atomic
from rlalign.records.sums import Saved
from rlalign.running.card import card
from rlalign.running.checkpointing import Saver, fingerprint_of_lock, is_whole, last_checkpoint, place_of
from rlalign.running.display import Display, make_display
from rlalign.running.evaluation import evaluate
from rlalign.running.exits import unfinished
from rlalign.running.iteration import run_iteration
from rlalign.running.lock import lock_of
from rlalign.running.models import save_folder
from rlalign.running.phase import RunningPhase
from rlalign.running.preflight import preflight
from rlalign.running.view import open_phase
from rlalign.running.workspace import Workspace


class Interrupted(RLAlignError):
    """The run was asked to stop, and stopped at a checkpoint."""

    exit_code = 130


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    path: Path
    metrics: Mapping[str, float]
    """The last evaluation's, or without evaluation the last iteration's."""


@unfinished()
@global_seeds_kept()
def start(
    pipeline: Pipeline,
    registry: Registry | None = None,
    *,
    root: Path | str = "runs",
    name: str | None = None,
    display: Display | None = None,
) -> Session:
    """A new run in a folder of its own."""
    session = Session(pipeline, registry or Registry(trust=True), display or make_display())
    session.create(Path(root), name)
    return session


@unfinished()
@global_seeds_kept()
def resume(
    path: Path | str,
    registry: Registry | None = None,
    *,
    inexact: bool = False,
    previous: bool = False,
    display: Display | None = None,
) -> Session:
    """A run that goes on from its last checkpoint (`previous`: from the last but one that is whole)."""
    directory = RunDir.open(path)
    try:
        registry = registry or Registry(trust=True)
        pipeline = load_pipeline(directory.pipeline, registry=registry)
        session = Session(pipeline, registry, display or make_display())
        session.reopen(directory, inexact=inexact, previous=previous)
    except BaseException:
        directory.close()
        raise
    return session


class Session(Workspace):
    """A run in its folder: phases in turn, then the exported model."""

    phase: RunningPhase
    """The present one, once a phase has begun."""

    def __init__(self, pipeline: Pipeline, registry: Registry, display: Display) -> None:
        super().__init__(pipeline, registry, display)
        self.stopping = False
        """Set by whoever wants the run to stop at its next checkpoint."""
        self._is_over = False
        self._at = {"repeat": 0, "place": 0}
        self._phase_state: Mapping[str, Any] | None = None
        self._optimiser_state: Mapping[str, Any] | None = None
        self._last_saved: int | None = None

    # -- the run's folder -----------------------------------------------------------------------------

    def create(self, root: Path, name: str | None) -> None:
        """Look at the data, build the policy, then claim a folder: a run that cannot begin leaves nothing."""
        preflight(self)
        self.build_policy()
        text = places.dump(places.escape(self.pipeline.resolved))
        lock = lock_of(self, text, {})
        self.dir = RunDir.create(root, self.pipeline.stem, name, pipeline=text, lock=lock)
        self.logs = Logs(self.dir.path, self.dir.require_mine)

    def reopen(self, directory: RunDir, *, inexact: bool, previous: bool) -> None:
        """Take up a run at its last checkpoint; without one it starts again, finished it stays as it is."""
        self.dir = directory
        self.logs = Logs(directory.path, directory.require_mine)
        saved = last_checkpoint(directory, previous, None if inexact else self.logs)
        if saved is not None:
            place_of(saved, self.plans, self.pipeline.repeat)
        if saved is not None and not previous and directory.model.exists():
            self._is_over, self.last = True, saved.loop["last"]
            return
        self.build_policy()
        changed = self._changed(saved, inexact=inexact)
        if not inexact:
            refuse_changed(changed, str(directory.path))
        logs, lost = self._logs_of(saved, inexact=inexact)
        directory.require_mine()
        shutil.rmtree(directory.model, ignore_errors=True)  # of a course that is left
        checkpoint.settle(directory.checkpoints, saved.index if saved else -1)
        self.logs.cut(logs)
        if changed or lost:
            at = saved.index if saved else None
            self.logs.append("inexact.jsonl", {"checkpoint": at, "changed": changed, "lost": lost})
        for line in lost:
            self.display.note(f"lost: {line}")
        if saved is None:
            self.display.note("no checkpoint yet: the run starts again")
            return
        with checkpoint.fitting(saved.path):
            self.load(saved)
        loop = saved.loop
        self._last_saved = saved.index
        self._at = {"repeat": loop["repeat"], "place": loop["place"]}
        if loop["done"]:
            self._at["place"] += 1
        else:
            self._phase_state, self._optimiser_state = loop["phase"], saved.optimiser

    def _changed(self, saved: checkpoint.Checkpoint | None, *, inexact: bool) -> list[str]:
        """What is not as it was when the run began, a line each."""
        text = self.dir.pipeline.read_text(encoding="utf-8-sig")
        try:
            old = read_lock(self.dir.lock)
        except CheckpointError:
            if not inexact:
                raise
            write_atomic(self.dir.lock, lock_text(lock_of(self, text, {})))
            return ["lock.json: was damaged, and is made anew: nothing could be compared"]
        changed = differences(old, lock_of(self, text, old["budgets"], old["environment"]))
        if saved is not None and fingerprint_of_lock(self.dir) != saved.loop["lock"]:
            changed.append("lock.json: it was edited since the checkpoint was written")
        return changed

    def _logs_of(
        self, saved: checkpoint.Checkpoint | None, *, inexact: bool
    ) -> tuple[Mapping[str, Saved], list[str]]:
        """The logs to go on with, and what is lost of them, which only an inexact run goes on without."""
        logs = saved.logs if saved else {}
        wrong = self.logs.damage(logs)
        if saved is None or not wrong:
            return logs, []
        lost = [f"{self.dir.path / name}: the log {told}" for name, told in wrong.items()]
        repeat = saved.loop["repeat"]
        needed = {
            self.data.rows_file(repeat, plan.settings.origin.phase)
            for plan in self.plans[saved.loop["place"] + saved.loop["done"] :]
            if plan.settings.origin is not None
        }
        if inexact and needed.isdisjoint(wrong):
            return self.logs.mend(logs, wrong), lost
        resume = f"`rlalign run --resume {self.dir.path}"
        ways = ["put it back"]
        earlier = [i for i in checkpoint.find(self.dir.checkpoints) if i < saved.index]
        if any(is_whole(self.dir, i, self.logs) for i in earlier):
            ways.append(f"go on from an earlier checkpoint: {resume} --previous`")
        if needed.isdisjoint(wrong):
            ways.append(f"go on with what can be read of it: {resume} --inexact`")
        else:
            ways.append("start the run again, as a later phase learns from it")
        raise CheckpointError("\n".join(lost) + f".\nTo go on: {', or '.join(ways)}.")

    # -- running --------------------------------------------------------------------------------------

    @unfinished()
    @global_seeds_kept()
    def run(self) -> Finished:
        """All phases that are still to be done."""
        saver = Saver(self, self._last_saved)
        try:
            self.display.started(self.dir.name, self.dir.path, [p.name for p in self.pipeline.phases])
            if self._is_over:
                self.display.note(f"{self.dir.path}: this run is finished; its model is in {self.dir.model}")
                return Finished(self.dir.path, self.last)
            for repeat in range(self._at["repeat"], self.pipeline.repeat):
                first = self._at["place"] if repeat == self._at["repeat"] else 0
                for place in range(first, len(self.plans)):
                    self._run_phase(repeat, place, saver)
            self.dir.require_mine()
            save_folder(self.models.policy, self.dir.model, card(self.dir.name, self.pipeline, self.last))
            self.display.finished(
                {
                    "folder": str(self.dir.path),
                    "model": str(self.dir.model),
                    "curves": f"tensorboard --logdir {self.dir.path}",
                }
            )
            return Finished(self.dir.path, self.last)
        finally:
            self.display.close()
            self.logs.close()
            self.dir.close()

    def _run_phase(self, repeat: int, place: int, saver: Saver) -> None:
        phase = self.phase = open_phase(self, self.plans[place], repeat, place)
        state, self._phase_state = self._phase_state, None
        phase.start(state)
        if self._optimiser_state and phase.learner is not None:
            with checkpoint.fitting(self.dir.checkpoints):
                phase.learner.optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        name = phase.settings.name
        self.display.phase(name if self.pipeline.repeat == 1 else f"{name} ({repeat + 1})", phase.iterations)
        is_last = place == len(self.plans) - 1 and repeat == self.pipeline.repeat - 1
        for iteration in iterate(phase):
            if phase.done or self.stopping or saver.due(iteration):
                saver.save(phase)
            if self.stopping and not (phase.done and is_last):
                raise Interrupted(
                    f"stopped after iteration {phase.iteration} of {name}, and saved; "
                    f"go on with `rlalign run --resume {self.dir.path}`"
                )
        if phase.ending:
            self.display.note(f"{name} ended: {phase.ending}")
        self.step, self.budget, self.head_chunk = phase.step, phase.engine.budget, phase.engine.head_chunk
        self.ticks += phase.iteration


def iterate(phase: RunningPhase) -> Iterator[int]:
    """Run the phase, evaluating now and then; yields after every iteration, at a point that can be saved."""
    asked = phase.settings.evaluate
    if phase.iteration == 0 and asked is not None:
        evaluate(phase)
    while not phase.done:
        with phase.telling_where():
            metrics = run_iteration(phase)
        phase.log(metrics)
        phase.workspace.display.iteration(phase.iteration, metrics)
        if asked is not None and (phase.done or (asked.every and phase.iteration % asked.every == 0)):
            evaluate(phase)
        if phase.done:
            phase.models.check_guard()
        yield phase.iteration
