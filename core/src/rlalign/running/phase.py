"""A phase in progress: where it stands, and what it works with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Outputs
from rlalign.data.rollout import Rollout
from rlalign.errors import BadLogits
from rlalign.interface.run import Run
from rlalign.interface.sampler import Sampler
from rlalign.learning.draw import Draw
from rlalign.learning.engine import Engine
from rlalign.learning.learner import GradientLearner
from rlalign.learning.optimiser import Optimiser
from rlalign.records.checkpoint import fitting
from rlalign.records.columns import Columns
from rlalign.records.shelf import Shelf
from rlalign.running.ahead import Ahead, Question
from rlalign.running.logged import LoggedResponses
from rlalign.running.metrics import sampler_gap
from rlalign.running.model_outputs import ModelOutputs
from rlalign.running.models import Models
from rlalign.running.plan import PhasePlan
from rlalign.running.untouched import Untouched
from rlalign.running.workspace import Workspace
from rlalign.world.ranks import here


class RunningPhase:
    """The state of a phase in progress. Hooks see it through `run`."""

    run: Run
    engine: Engine
    outputs: ModelOutputs

    def __init__(self, workspace: Workspace, plan: PhasePlan, repeat: int, place: int) -> None:
        self.workspace = workspace
        self.plan = plan
        self.settings = plan.settings
        self.keeps = self.settings.train.keep_responses or workspace.data.is_read_later(self.settings.name)
        self.repeat = repeat
        self.place = place
        self.models: Models = workspace.models
        self.step = workspace.step
        self.iteration = 0
        self.iterations = 0
        self.ending: str | None = None
        self.progress_matters = False
        """Whether a component has asked how far the phase is: then its length has had a say already."""
        self.sampled_at: int | None = None
        """The step before which this iteration's responses were sampled; None: they were not."""
        self.position = 0
        """Where the present examples stand in the iteration's draw."""
        self.finished: Callable[[Rollout], None] | None = None
        """While training responses are sampled: whom to tell of whole groups as they end."""
        self.upcoming: Question | None = None
        """While training responses are sampled: what is asked of the sampler as soon as these are there."""
        self.ahead = Ahead()
        self.share = 0.0
        """How much of the present iteration's learning is done, in [0, 1]."""
        self.tied = 0
        """Iterations up to now in which all responses of each group earned the same."""
        self.learner: GradientLearner | None = None
        self.sampler: Sampler | None = None
        """Who samples in the policy's place, while the phase is run and not only looked at."""
        self.clock = Clock()
        self.untouched = Untouched(self.models, workspace.seeds, workspace.note_once, self._stands)
        data = workspace.data.training(plan, repeat)
        folder, guard, refuse = (
            workspace.dir.columns,
            workspace.dir.require_mine,
            workspace.data.refusing(plan, data),
        )
        keep = Shelf(folder / "draws", guard)
        self.draw = Draw(data, workspace.seeds, ("draw", repeat, place), keep=keep, refuse=refuse)
        columns = Columns(folder, data, self.draw.row_starts, guard, refuse or (lambda examples: ()))
        self.logged = LoggedResponses(plan, self.models, columns)

    def start(self, state: Mapping[str, Any] | None = None, *, changed: bool = False) -> None:
        """Make models ready, meet the components, and take up a saved state if there is one.

        `changed`: the pipeline said something else when that was saved.
        """
        plan, train, components = self.plan, self.settings.train, self.workspace.components
        if state is None:
            self.models.prepare(plan.models, self.settings.models)
            self.models.guard(plan.trains)
        self.models.train_only(plan.trains)
        self._make_engine()
        self.sampler = plan.sampler
        if plan.learns:
            trained = {name: self.models[name] for name in plan.trains}
            optimiser = Optimiser(trained, train)
            self.learner = GradientLearner(
                self.engine,
                optimiser,
                self.models,
                train,
                self.losses,
                started=lambda step: plan.training.step_started(self.run, step),
            )
        for member in plan.everybody:
            if member.role == "observers" and not here().leads:
                continue
            self.workspace.display.stage(f"setting up {member.name}")
            if hasattr(member.component.constraint, "resolve"):
                member.component.constraint.resolve(self.models)
            components.set_up(member.component, member.sees(self.run))
        if state is None:
            components.restore()
        else:
            self._load(state)
        for stages in plan.told:
            stages.phase_started(self.run)
        if state is None or changed:
            self.iterations = self.draw.planned(train)
        if state is not None:
            components.restore()  # only now, since `phase_started` may begin a component's state afresh
            with fitting(self.workspace.dir.checkpoints):
                self.draw.load_state_dict(state["draw"], changed=changed)

    def look(self, state: Mapping[str, Any] | None = None, *, scoring: bool = True) -> None:
        """Be ready to sample (and to evaluate, if `scoring`) where a saved phase stood, but not to learn."""
        if state is None:
            self.models.prepare(self.plan.models, self.settings.models)
        self.models.train_only(())
        self._make_engine()
        for member in self.plan.evaluators if scoring else self.plan.evaluators[:1]:  # the task is first
            self.workspace.components.set_up(member.component, self.run)
        if state is not None:
            self._load(state)
        if scoring:
            self.plan.evaluation.phase_started(self.run)
        self.workspace.components.restore()

    def _make_engine(self) -> None:
        plan, train = self.plan, self.settings.train
        self.engine = Engine(
            self.models,
            trains=plan.trains,
            needs=plan.live,
            unit=plan.unit,
            budget=train.budget or self.workspace.budget,
            head_chunk=self.workspace.head_chunk,
            dtype="float32" if train.weights else train.dtype,  # nothing is left to round
            mismatch=plan.mismatch,
            dropout=train.dropout,
            recompute=train.recompute,
            before_forward=self._seed_forward,
        )
        self.outputs = ModelOutputs(self.engine, self.workspace)

    def _seed_forward(self, micro: int, part: int) -> None:
        if self.settings.train.dropout:
            seeds = self.workspace.seeds
            seeds.seed_forward("dropout", self.repeat, self.place, self.step, micro, part)

    def losses(self, batch: Batch, now: Outputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of all losses on a piece of a step, and their metrics."""
        value, metrics = self.plan.training.loss(self.run, batch, now)
        if self.sampled_at == self.step:
            metrics = {**metrics, **sampler_gap(batch, now)}
        return value, metrics

    # -- where it stands ------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.iteration >= self.iterations or self.ending is not None

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation follows the iteration that is done now."""
        asked = self.settings.evaluate
        return asked is not None and (self.done or bool(asked.every and self.iteration % asked.every == 0))

    @property
    def tick(self) -> int:
        """Iterations of the whole run that are done."""
        return self.workspace.ticks + self.iteration

    @property
    def progress(self) -> float:
        return min(1.0, (self.iteration + self.share) / max(1, self.iterations))

    @property
    def where(self) -> dict[str, Any]:
        """Where the run stands, as every line of its logs says."""
        return {"phase": self.settings.name, "repeat": self.repeat, "iteration": self.iteration}

    def _stands(self) -> dict[str, Any]:
        """What no hook may move."""
        return {
            "repeat": self.repeat,
            "place": self.place,
            "iteration": self.iteration,
            "iterations": self.iterations,
            "step": self.step,
            "position": self.position,
            "share": self.share,
            "drawn": self.draw.position,
        }

    def rng(self, *key: str | int) -> torch.Generator:
        return self.workspace.seeds.rng(self.repeat, self.place, *key)

    def log(self, metrics: Mapping[str, float], *, evaluation: bool = False) -> None:
        """A line of metrics.jsonl."""
        self.workspace.logs.metrics({**self.where, "step": self.step, **metrics}, step=self.tick)
        self.workspace.remember(metrics, self.where, evaluation=evaluation)

    @contextmanager
    def telling_where(self) -> Iterator[None]:
        """Say at which iteration a model's logits went bad."""
        try:
            yield
        except BadLogits as error:
            raise BadLogits(f"iteration {self.iteration + 1} of `{self.settings.name}`: {error}") from error

    # -- what a checkpoint keeps of it, beside weights and components ---------------------------------

    def state(self) -> dict[str, Any]:
        asked = self.ahead.state() if self.plan.asks_ahead and not self.done else {}
        return {
            **asked,
            "iteration": self.iteration,
            "iterations": self.iterations,
            "step": self.step,
            "ending": self.ending,
            "progress_matters": self.progress_matters,
            "draw": self.draw.state_dict(),
            "columns": dict(self.logged.columns.folders),
            "guarded": self.models.guarded,
            "budget": self.engine.budget,
            "head_chunk": self.engine.head_chunk,
            "at_once": self.models.policy.at_once,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.iteration, self.iterations = state["iteration"], state["iterations"]
        self.step, self.ending = state["step"], state["ending"]
        self.progress_matters = state["progress_matters"]
        self.ahead.load(state, self.models.device)
        self.logged.columns.folders = dict(state["columns"])
        self.models.guarded = dict(state["guarded"])
        self.engine.budget, self.engine.head_chunk = state["budget"], state["head_chunk"]


class Clock:
    """Seconds spent in each part of an iteration; tells when one begins."""

    def __init__(self, begins: Callable[[str], None] = lambda part: None) -> None:
        self.seconds: dict[str, float] = {}
        self.worked: dict[str, float] = {}
        """Seconds of the processor, in which nobody else's work counts."""
        self._begins = begins

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._begins(part)
        started, worked = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
            self.worked[part] = self.worked.get(part, 0.0) + time.process_time() - worked
