"""A run from its first phase to its last: begun, resumed, saved, exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Pipeline, without_observers
from rlalign.config.registry import Registry
from rlalign.errors import CheckpointError, RLAlignError
from rlalign.interface.policy import Policy
from rlalign.progress import told_to
from rlalign.randomness import global_seeds_kept
from rlalign.records import checkpoint, events
from rlalign.records.environment import read_lock, refuse_changed
from rlalign.records.logs import Logs
from rlalign.records.result import Result
from rlalign.records.rewriting import complete
from rlalign.records.rundir import RunDir, led
from rlalign.running import signatures
from rlalign.running.best import Best
from rlalign.running.card import Card, save_folder
from rlalign.running.changes import extension, judge
from rlalign.running.checkpointing import (
    Saver,
    is_cleaned,
    is_last,
    is_over,
    last_checkpoint,
    place_of,
    read_checkpoint,
    share_of_iterations,
)
from rlalign.running.cutting import cut_or_whole
from rlalign.running.display import Display, NoDisplay, make_display
from rlalign.running.exits import unfinished
from rlalign.running.iterating import iterate
from rlalign.running.lock import lock_of
from rlalign.running.measured import Costs, Memory
from rlalign.running.phase import RunningPhase
from rlalign.running.pieces import load_optimiser, put_together
from rlalign.running.preflight import preflight
from rlalign.running.reopening import change, changes_since, differing, logs_of, note_down
from rlalign.running.view import open_phase
from rlalign.running.workspace import Workspace
from rlalign.world.ranks import here


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
    budgets: Mapping[str, Any] | None = None,
) -> Session:
    """A new run in a folder of its own; `budgets` are those of another run's lock, where it shall be as that one."""
    session = Session(pipeline, registry or Registry(trust=True), display or make_display())
    session.create(Path(root), name, budgets)
    return session


@unfinished()
@global_seeds_kept()
def resume(
    path: Path | str,
    registry: Registry | None = None,
    *,
    overrides: Sequence[str] = (),
    extend: int | None = None,
    inexact: bool = False,
    previous: bool = False,
    display: Display | None = None,
    said: str = "command line",
) -> Session:
    """A run that goes on from its last checkpoint (`previous`: from the last but one that is whole).

    From there on its pipeline has these overrides, and its last phase `extend` more iterations.
    """
    directory = led(lambda: RunDir.open(path))
    try:
        here().lead(lambda: complete(directory), "completing a change of the run")
        registry, was = registry or Registry(trust=True), None
        pipeline = load_pipeline(directory.pipeline, overrides, registry=registry, said=said)
        if extend is not None:
            last = len(pipeline.phases) - 1
            share = here().lead(lambda: share_of_iterations(directory, last), "how long the phase is")
            overrides = [*overrides, extension(pipeline, extend, share)]
            pipeline = load_pipeline(directory.pipeline, overrides, registry=registry, said=said)
        before = load_pipeline(directory.pipeline, registry=registry) if overrides else pipeline
        if before.resolved != pipeline.resolved:
            was = Workspace(before, registry, NoDisplay())
        session = Session(pipeline, registry, display or make_display())
        session.reopen(directory, was, inexact=inexact, previous=previous)
    except BaseException:
        directory.close()
        raise
    return session


class Session(Workspace):
    """A run in its folder: phases in turn, then the exported model."""

    phase: RunningPhase
    """The present one, once a phase has begun."""

    def __init__(self, pipeline: Pipeline, registry: Registry, display: Display) -> None:
        super().__init__(pipeline, registry, display if here().leads else NoDisplay())
        self.stopping = False
        """Set by whoever wants the run to stop at its next checkpoint."""
        self.best = Best(pipeline.checkpoints)
        self._is_over = False
        self._costs: dict[str, str] = {}
        """What each phase took beside its estimate, in words."""
        self._at = {"repeat": 0, "place": 0}
        self._phase_state: Mapping[str, Any] | None = None
        self._optimiser_state: tuple[Path, Mapping[str, Any]] | None = None
        self._changed_since = False
        """Whether the pipeline said something else when the checkpoint was written."""
        self._last_saved: int | None = None

    def build_policy(self) -> None:
        self.models.opened()  # whatever that imports is no memory of the models
        self._memory = Memory(self.device)
        self.models.cut, why = cut_or_whole(self.pipeline, self.plans, self.device)
        if why:
            self.display.note(why)
        super().build_policy()

    # -- the run's folder -----------------------------------------------------------------------------

    def create(self, root: Path, name: str | None, budgets: Mapping[str, Any] | None = None) -> None:
        """Look at the data, build the policy, then claim a folder: a run that cannot begin leaves nothing."""
        self.display.stage("reading the data")
        preflight(self)
        self.display.stage("loading the model")
        self.build_policy()
        text = places.dump(places.escape(self.pipeline.resolved))
        lock, stem = lock_of(self, text, self.fit(budgets or {})), self.pipeline.stem
        self.dir = led(lambda: RunDir.create(root, stem, name, pipeline=text, lock=lock))
        self.logs = self._logs()

    def _logs(self) -> Logs:
        """The run's logs; TensorBoard is told the pipeline first."""
        said = without_observers(self.pipeline.resolved)
        return Logs(
            self.dir.path,
            self.dir.require_mine,
            lambda: events.started(said, places.dump(places.escape(said))),
        )

    def reopen(
        self, directory: RunDir, was: Workspace | None = None, *, inexact: bool, previous: bool
    ) -> None:
        """Take up a run at its last checkpoint; without one it starts again, finished it stays as it is.

        `was` is the run as its pipeline.yaml has it, where that is about to change.
        """
        self.dir = directory
        self.logs = self._logs()
        if is_cleaned(directory):
            if previous or was is not None:
                raise CheckpointError(
                    f"{directory.path}: this run is finished and its checkpoints are deleted, so there is none to "
                    f"go on from; its model is in {directory.model}"
                )
            last = Result(directory.path).last
            self.last = {name: x for name, x in last.items() if type(x) is float and name[:5] != "time/"}
            self._is_over = True
            return
        saved = self._last(previous, None if inexact else self.logs)
        reasons = [] if was is None else judge(was, self, saved)
        if saved is not None:
            place_of(saved, self.plans, self.pipeline.repeat)
            fresh = was or changes_since(directory, saved)
            if is_over(self, saved) and directory.model.exists() and not fresh:
                self._is_over, self.last = True, saved.loop["last"]
                return
        if was is not None:
            preflight(self)
        self.display.stage("loading the model")
        self.build_policy()
        self.fit({} if inexact else read_lock(directory.lock)["budgets"])

        def settle() -> list[dict[str, Any]]:
            changed, elsewhere = differing(self, was or self, saved, inexact=inexact)
            if not inexact:
                refuse_changed(changed, str(directory.path))
            logs, lost = logs_of(self, saved, inexact=inexact)
            directory.require_mine()
            if previous:
                self._drop_model()  # of a course that is left
            checkpoint.settle(directory.checkpoints, saved.index if saved else -1)
            self.logs.cut(logs)
            if was is not None:
                change(self, was, saved, reasons)
            said = changes_since(directory, saved)
            inexactly = elsewhere + [line for one in said for line in one["inexact"]]
            note_down(self, saved, changed, lost, inexactly)
            return said

        said = here().lead(settle, "taking up the run")
        if saved is None:
            self.display.note("no checkpoint yet: the run starts again")
            return
        self.display.stage("loading the checkpoint")
        with checkpoint.fitting(saved.path):
            self.load(saved)
        self._take_up(saved, changed=bool(said))

    def _last(self, previous: bool, logs: Logs | None) -> checkpoint.Checkpoint | None:
        """The last checkpoint that rank 0 sees: for a while a shared file system may show others less."""
        found: list[checkpoint.Checkpoint | None] = []

        def index() -> int | None:
            found.append(saved := last_checkpoint(self.dir, previous, logs))
            return None if saved is None else saved.index

        last = here().lead(index, "finding the last checkpoint")
        if found:
            return found[0]
        return None if last is None else read_checkpoint(self.dir, last)

    def _take_up(self, saved: checkpoint.Checkpoint, *, changed: bool) -> None:
        """Stand where a checkpoint does."""
        loop = saved.loop
        self._last_saved, self._changed_since = saved.index, changed
        self._at = {"repeat": loop["repeat"], "place": loop["place"]}
        self.best.load(loop["best"])
        if loop["done"] and not (changed and is_over(self, saved)):
            self._at["place"] += 1
            return
        self._phase_state, self._optimiser_state = loop["phase"], (saved.path, saved.optimiser)
        if loop["done"]:  # it has become longer
            self.ticks -= loop["phase"]["iteration"]

    # -- running --------------------------------------------------------------------------------------

    @unfinished()
    @global_seeds_kept()
    def run(self) -> Finished:
        """All phases that are still to be done."""
        saver = Saver(self, self.best, self._last_saved)
        try:
            self.display.started(self.dir.name, self.dir.path, [p.name for p in self.pipeline.phases])
            if self._is_over:
                self.display.note(f"{self.dir.path}: this run is finished; its model is in {self.dir.model}")
                return Finished(self.dir.path, self.last)
            for repeat in range(self._at["repeat"], self.pipeline.repeat):
                first = self._at["place"] if repeat == self._at["repeat"] else 0
                for place in range(first, len(self.plans)):
                    with told_to(self.display.piece):
                        self._run_phase(repeat, place, saver)
            saver.wait()
            policy = put_together(self.models)
            here().lead(lambda: self._export(policy), "writing the model")
            self._tell_ended(None)
            self.display.finished(
                {
                    "folder": str(self.dir.path),
                    "model": str(self.dir.model),
                    "curves": f"tensorboard --logdir {self.dir.path}",
                    **self._costs,
                }
            )
            return Finished(self.dir.path, self.last)
        except Exception as error:
            try:
                self._tell_ended(error)
            except RLAlignError as another:  # what went wrong first is what is told
                self.display.note(str(another))
            raise
        except KeyboardInterrupt:
            saver.give_up()
            raise
        finally:
            closes: list[Callable[[], None]] = [self.dir.close, self.logs.close, self.display.close]
            closes += [component.close for component in reversed(self.served)]
            closes += [environment.pool.close for environment in self.isolated]
            closes += [sampler.close for sampler in self.samplers]
            closes += [self.phase.ahead.close] if hasattr(self, "phase") else []
            with ExitStack() as closing:  # the last is closed first
                for close in (*closes, saver.close):
                    closing.callback(close)

    def _export(self, policy: Policy) -> None:
        self._drop_model()
        self.logs.event(events.ended())  # before the model, whose presence says that all is done
        self.display.stage("writing the model")
        signed, lock = Result(self.dir.path).signatures, read_lock(self.dir.lock, provenance=True)
        card = Card(self.dir.name, self.pipeline, self.last, self.measured, signed, self.spread, lock)
        note = save_folder(policy, self.dir.model, card)
        if note is not None:
            self.display.note(f"{self.dir.model}: {note.partition('. ')[0]} (more in its README.md)")

    def _tell_ended(self, error: Exception | None) -> None:
        """Tell the components that this process worked with, each once."""
        if hasattr(self, "phase"):
            for stages in (stages for plan in self.plans for stages in plan.told):
                stages.run_ended(self.phase.run, error, self.components.dismiss)

    def _run_phase(self, repeat: int, place: int, saver: Saver) -> None:
        phase = self.phase = open_phase(self, self.plans[place], repeat, place)
        state, self._phase_state = self._phase_state, None
        phase.start(state, changed=self._changed_since and state is not None)
        signatures.note(phase)
        if self._optimiser_state is not None and phase.learner is not None:
            load_optimiser(phase.learner.optimiser, *self._optimiser_state)
        self._optimiser_state = None
        name = phase.settings.name
        self.display.phase(name if self.pipeline.repeat == 1 else f"{name} ({repeat + 1})", phase.iterations)
        ends, costs = is_last(self, repeat, place), Costs(phase, self._memory)
        for _ in iterate(phase, costs.iteration):
            saver.look()
            if phase.done and ends:
                self._drop_model()  # of a run that was shorter: beside a finished run's last checkpoint lies its own
            self.stopping, due = saver.agreed(phase, self.stopping)
            if phase.done or self.stopping or due:
                saver.save(phase)
            if self.stopping and not (phase.done and ends):
                here().lead(saver.wait, "the last checkpoint")
                raise Interrupted(
                    f"stopped after iteration {phase.iteration} of {name}, and saved; "
                    f"go on with `rlalign run --resume {self.dir.path}`"
                )
        if took := here().lead(lambda: costs.written(self.dir.path), "what it took"):
            self._costs[f"costs of {name}"] = took
        if phase.ending:
            self.display.note(f"{name} ended: {phase.ending}")
        self.step, self.budget, self.head_chunk = phase.step, phase.engine.budget, phase.engine.head_chunk
        self.ticks += phase.iteration

    def _drop_model(self) -> None:
        if not here().leads:
            return
        self.dir.require_mine()
        shutil.rmtree(self.dir.model, ignore_errors=True)

    def remember(self, metrics: Mapping[str, float], where: Mapping[str, Any], *, evaluation: bool) -> None:
        super().remember(metrics, where, evaluation=evaluation)
        if evaluation:
            phase, again = self.phase, self.phase.repeat + 1 < self.pipeline.repeat
            later = self.plans if again else self.plans[phase.place + 1 :]
            index, counts = self.ticks + phase.iteration, phase.iteration > 0
            self.best.seen(metrics, index, counts=counts, plan=phase.plan, later=later)
