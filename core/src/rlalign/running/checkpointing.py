"""When a checkpoint is written, and what it holds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, NonNegativeInt, PositiveInt

from rlalign.data.limits import free_memory
from rlalign.errors import CheckpointError, ConfigError, RLAlignError, describe_error
from rlalign.records import checkpoint, manifest
from rlalign.records.background import Background
from rlalign.records.files import inside, read_bytes, require_shape
from rlalign.records.logs import Logs
from rlalign.records.rundir import RunDir
from rlalign.records.shards import stripped
from rlalign.records.snapshot import Snapshot
from rlalign.running.best import Best
from rlalign.running.phase import RunningPhase
from rlalign.running.pieces import write_pieces
from rlalign.running.untouched import some_of, weights_of
from rlalign.running.workspace import Workspace
from rlalign.world.ranks import here

SAVING_COST = 0.05
"""The share of the time that checkpoints may be written in unless the pipeline says how often to write them."""
NO_ROOM = (
    "a copy of what they hold does not fit in half of the memory that is free, so the run stands still while they are "
    "written; `checkpoints: {every: N}` makes them fewer"
)


class _Phase(BaseModel):
    iteration: NonNegativeInt
    iterations: NonNegativeInt
    step: NonNegativeInt
    ending: str | None
    progress_matters: bool
    draw: dict[str, Any]
    columns: dict[str, str]
    guarded: dict[str, str]
    budget: PositiveInt
    head_chunk: PositiveInt
    ahead: dict[str, Any] | None = None


class _Best(BaseModel):
    by: list[str]
    value: float | None
    index: NonNegativeInt | None


class _Loop(BaseModel):
    """Where a run stands."""

    repeat: NonNegativeInt
    place: NonNegativeInt
    done: bool
    step: NonNegativeInt
    ticks: NonNegativeInt
    phase: _Phase
    recipes: dict[str, dict[str, str | None]]
    last: dict[str, float]
    best: _Best | None
    lock: str


class GivenUp(RLAlignError):
    """The run stops at once, so the checkpoint that is being written is not."""


class Saver:
    """Writes the checkpoints of a run: copied while the run stands still, written by a thread while it goes on.

    There is one copy and one thread, so that the next checkpoint waits until the one before is whole.
    """

    def __init__(self, workspace: Workspace, best: Best, previous: int | None = None) -> None:
        self._workspace = workspace
        self._best = best
        self._previous = previous
        """The checkpoint before, whose unchanged files the next one shares."""
        self._lock = fingerprint_of_lock(workspace.dir)
        self._saved_at = time.perf_counter()
        self._cost = 0.0
        """Seconds for which the run stood still for the last one."""
        self._snapshot = Snapshot()
        self._writer = Background[Path]("checkpoint")
        self._given_up = False

    def agreed(self, phase: RunningPhase, stopping: bool) -> tuple[bool, bool]:
        """Whether somebody asked any process to stop, and whether a checkpoint is due by rank 0's clock."""
        where = f"iteration {phase.iteration} of `{phase.settings.name}`{', the last' if phase.done else ''}"
        asked = here().gather(lambda: (stopping, self.due(phase)), where)
        return any(stop for stop, _ in asked), asked[0][1]

    def due(self, phase: RunningPhase) -> bool:
        if self._best.index == self._workspace.ticks + phase.iteration:
            return True
        every = self._workspace.pipeline.checkpoints.every
        if every is not None:
            return phase.iteration % every == 0
        took = self._cost + self._writer.took
        return not self._writer.busy and took <= SAVING_COST * (time.perf_counter() - self._saved_at)

    def save(self, phase: RunningPhase) -> None:
        """Begin to write the run as it stands, once the checkpoint before is whole."""
        space, started = self._workspace, time.perf_counter()
        space.display.stage("checkpoint")
        self.wait()
        index = space.ticks + phase.iteration
        components = space.components.states()
        acting = {key: state for key, state in components.items() if self._acts_everywhere(key)}
        here().same(lambda: {**acting, "weights": self._weights(phase)}, f"at checkpoint {index}")
        states = self._states(phase, components)
        folder = space.dir.checkpoints.absolute()  # a hook may work in another one
        pieces = write_pieces(folder, index, states, self._go_on)
        if not here().leads:
            return
        states = stripped(states)
        space.dir.require_mine()
        fits = self._snapshot.fits(states, free_memory())
        held = self._snapshot.take(states) if fits else states
        logs, sync = space.logs.sums(), space.logs.syncing()
        previous, last, best = self._previous, space.pipeline.checkpoints.last, self._best.index

        def write() -> Path:
            self._snapshot.wait()
            self._go_on()
            sync()
            return checkpoint.write(
                folder,
                index,
                **held,
                logs=logs,
                last=last,
                best=best,
                previous=previous,
                go_on=self._go_on,
                pieces=pieces,
            )

        self._writer.start(write)
        self._previous = index
        if not fits:
            space.note_once("checkpoints:", "memory", NO_ROOM)
            self.wait()
        self._saved_at = time.perf_counter()
        self._cost = self._saved_at - started

    def _acts_everywhere(self, key: str) -> bool:
        """Whether a component is asked the same on every rank, and not by rank 0 alone."""
        known = self._workspace.components.keyed.get(key)
        return "/observers/" not in key and not (known and known.by_one)

    def _weights(self, phase: RunningPhase) -> dict[str, Any]:
        """Some numbers of each tensor that learns, and that every process has."""
        learning = {name: phase.models[name] for name in phase.plan.trains}
        return {
            name: {w.key: some_of(w.tensor) for w in weights_of(model) if not w.is_cut}
            for name, model in learning.items()
        }

    def _states(self, phase: RunningPhase, components: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds; no weights of models that the one before holds."""
        space = self._workspace
        goes_on = not phase.done or is_last(space, phase.repeat, phase.place)  # the last may be extended
        optimiser = phase.learner.optimiser.state_dict() if phase.learner and goes_on else {}
        models = space.models.state()
        versions = {name: version for name, (version, _) in models.items()}
        there = here().lead(
            lambda: [*checkpoint.unchanged(space.dir.checkpoints, self._previous, versions)],
            "what the checkpoint before holds",
        )
        loop = {
            "repeat": phase.repeat,
            "place": phase.place,
            "done": phase.done,
            "step": phase.step,
            "ticks": space.ticks + (phase.iteration if phase.done else 0),
            "phase": phase.state(),
            "recipes": space.models.recipes,
            "last": space.last,
            "measured": space.measured,
            "spread": space.spread,
            "best": self._best.state(),
            "lock": self._lock,
        }
        return {
            "models": {
                name: (version, None if name in there else w) for name, (version, w) in models.items()
            },
            "optimiser": optimiser,
            "components": components,
            "loop": loop,
        }

    def look(self) -> None:
        """Tell of a checkpoint that has become whole, or raise what went wrong with it."""
        if not self._writer.busy:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole."""
        space = self._workspace
        try:
            path = self._writer.result()
        except RLAlignError:
            space.dir.require_mine()  # a folder that was moved is a better reason
            raise
        if path is not None:
            space.dir.require_mine()  # an iteration may have passed since it was written
            folder = space.dir.checkpoints
            space.answers.drop(checkpoint.find(folder)[-space.pipeline.checkpoints.last :][0])
            space.display.saved(folder / path.name)

    def give_up(self) -> None:
        """Leave a checkpoint that is not whole: the run stops at once."""
        self._given_up = True

    def close(self) -> None:
        """End once the last checkpoint is whole. The run has ended for a reason of its own, so its errors are notes."""
        try:
            self.wait()
        except GivenUp:
            pass
        except Exception as error:
            self._workspace.display.note(describe_error(error))
        finally:
            self._writer.close()

    def _go_on(self) -> None:
        """What the thread asks between files: the folder may have been moved, and another run have its name now."""
        if self._given_up:
            raise GivenUp("the run was stopped at once")
        self._workspace.dir.require_mine()


def is_last(space: Workspace, repeat: int, place: int) -> bool:
    """Whether the run ends with this phase of this pass."""
    return repeat == space.pipeline.repeat - 1 and place == len(space.plans) - 1


def is_over(space: Workspace, saved: checkpoint.Checkpoint) -> bool:
    """Whether nothing is left to be trained after a checkpoint."""
    return saved.loop["done"] and is_last(space, saved.loop["repeat"], saved.loop["place"])


def fingerprint_of_lock(run: RunDir) -> str:
    """A hash of lock.json, so that an edit of it shows."""
    return hashlib.sha256(read_bytes(run.lock)).hexdigest()


def is_cleaned(run: RunDir) -> bool:
    """Whether a run is finished and its checkpoints are deleted: its model is all that is left of it."""
    return run.model.is_dir() and not checkpoint.find(run.checkpoints)


def last_checkpoint(run: RunDir, previous: bool, logs: Logs | None = None) -> checkpoint.Checkpoint | None:
    """The last one, or the last whole one before it (`logs`: whose logs are whole too)."""
    found = checkpoint.find(run.checkpoints)
    if not previous:
        return read_checkpoint(run, found[-1]) if found else None
    for earlier in reversed(found[:-1]):
        if is_whole(run, earlier, logs):
            return read_checkpoint(run, earlier)
    raise CheckpointError(
        f"{run.path}: there is no whole checkpoint before the last{' with whole logs' if logs else ''}; "
        "leave out --previous"
    )


def share_of_iterations(run: RunDir, place: int) -> float:
    """Of those that the pipeline says, how many a phase makes (`draw.scale`); 1 where it is not the one in progress."""
    if not (found := checkpoint.find(run.checkpoints)):
        return 1.0
    loop = checkpoint.loop_of(run.checkpoints, found[-1])
    share: float = loop["phase"]["draw"].get("share", 1.0) if loop["place"] == place else 1.0
    return share


def without_checkpoint(run: RunDir) -> str:
    """Why a run cannot be opened that has no checkpoint."""
    if is_cleaned(run):
        return (
            f"{run.path}: this run is finished and its checkpoints are deleted; its model is in {run.model}: copy that "
            f"folder instead of exporting it, `rlalign eval {run.model} --task … --reward …` measures it, and "
            f"`rlalign sample {run.model} --new --prompt …` samples from it"
        )
    return (
        f"{run.path}: nothing is saved yet: wait for its first iteration, or go on with it: "
        f"`rlalign run --resume {run.path}`"
    )


def index_at(run: RunDir, at: int | Literal["best"]) -> int:
    """The checkpoint of this iteration of the whole run, or of its best evaluation so far."""
    found = checkpoint.find(run.checkpoints)
    best = checkpoint.best_of(run.checkpoints, found[-1]) if found else None
    if at in found:
        return int(at)
    if at == "best" and best is not None:
        return best
    if not found:
        raise ConfigError(without_checkpoint(run))
    there = ", ".join(f"{i} (best)" if i == best else str(i) for i in found)
    if at == "best":
        raise ConfigError(
            f"{run.path}: no checkpoint is its best: one is once an evaluation was made, where the pipeline says "
            f"`checkpoints: {{best: eval/NAME}}`; there are those of the iterations {there}"
        )
    raise ConfigError(
        f"{run.path}: there is no checkpoint of iteration {at}; there are those of the iterations {there}. "
        "More are kept by `checkpoints.every` and `checkpoints.last`"
    )


def checkpoint_at(run: RunDir, at: int | Literal["best"]) -> checkpoint.Checkpoint:
    """The checkpoint of this iteration of the run, or of its best evaluation."""
    return read_checkpoint(run, index_at(run, at))


def is_whole(run: RunDir, index: int, logs: Logs | None) -> bool:
    """Whether a checkpoint is as it was written, and its logs too."""
    if manifest.damage(run.checkpoints / f"{index:08d}") is not None:
        return False
    return logs is None or not logs.damage(checkpoint.log_sums(run.checkpoints, index))


def read_checkpoint(run: RunDir, index: int) -> checkpoint.Checkpoint:
    saved = checkpoint.read(run.checkpoints, index)
    require_shape(saved.loop, _Loop, saved.path / "state.json")
    require_shape(saved.components, dict[str, Any], saved.path / "state.json")
    for folder in saved.loop["phase"]["columns"].values():
        inside(run.columns, folder)
    return saved


def place_of(saved: checkpoint.Checkpoint, phases: Sequence[Any], repeats: int) -> tuple[int, int]:
    """The pass and the phase where a checkpoint stands, which the pipeline must have."""
    repeat, place = saved.loop["repeat"], saved.loop["place"]
    if repeat >= repeats or place >= len(phases):
        raise CheckpointError(
            f"{saved.path}: stands in pass {repeat + 1}, phase {place + 1}, but pipeline.yaml has {repeats} and "
            f"{len(phases)}: one of them was edited. Put it back, or start the run again."
        )
    return repeat, place
