"""One phase: draw, rollout, reward, advantage, update, and evaluation now and then."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlalign.columns import Columns, Compute
from rlalign.draw import Draw
from rlalign.engine import Engine
from rlalign.errors import ComponentError, blaming
from rlalign.evaluation import evaluate
from rlalign.figures import of_responses
from rlalign.learner import Learner
from rlalign.models import Models, fingerprint
from rlalign.optimiser import Optimiser
from rlalign.pipeline import Sampling
from rlalign.policy import Policy
from rlalign.records.remembered import Remembered, scored_once
from rlalign.records.rows import OURS, SAMPLED, rows_of
from rlalign.run import Run
from rlalign.stages import Stages
from rlalign.types import Batch, Example, Outputs, Reward, Rollout, concat_batches, field_of
from rlalign.wiring import Wiring

if TYPE_CHECKING:
    from rlalign.loop import Session

DROPPED_AT_MOST = 0.05


class PhaseRun:
    """The state of a phase in progress. Hooks see it through `Run`."""

    def __init__(self, session: Session, wiring: Wiring, repeat: int, place: int) -> None:
        self.session = session
        self.wiring = wiring
        self.phase = wiring.phase
        self.keeps = self.phase.train.keep_responses or session.is_read_later(self.phase.name)
        self.place = place
        self.repeat = repeat
        self.models: Models = session.models
        self.generation: Sampling = self.phase.generation
        self.step = session.step
        self.iteration = 0
        self.iterations = 0
        self.ending: str | None = None
        self.updating = False
        self.offset = 0
        """Position of the present examples in the iteration's draw."""
        self.learner: Learner | None = None
        self.run = Run(self)
        self._within = 0.0
        self._responded = 0
        self._epochs = 0
        """Epochs of this iteration's update so far."""
        self._scored: WeakKeyDictionary[Rollout, dict[tuple[str, int, str], Tensor]] = WeakKeyDictionary()
        self._times: dict[str, float] = {}
        self._stores: dict[str, Remembered] = {}
        data = session.training_data(wiring)
        self.draw = Draw(data, session.seeds, ("draw", repeat, place))
        self.columns = Columns(session.dir.columns, data, self.draw.row_starts)

    # -- the phase ----------------------------------------------------------------------------------

    def start(self, state: Mapping[str, Any] | None = None) -> None:
        """Make models ready, meet the components, and take up a saved state if there is one."""
        wiring, train = self.wiring, self.phase.train
        if state is None:
            self.models.prepare(wiring.models, self.phase.models)
            self.models.guard(wiring.trains)
        self.models.train_only(wiring.trains)
        self._make_engine()
        if wiring.learns:
            trained = {name: self.models[name] for name in wiring.trains}
            optimiser = Optimiser(trained, train)
            self.learner = Learner(self.engine, optimiser, self.models, train, self._losses)
        for component in wiring.components:
            if hasattr(component.constraint, "resolve"):
                component.constraint.resolve(self.models)
            self.session.set_up(component, self.run)
        if state is None:
            self.session.restore_components()
        else:
            self._load(state)
        wiring.stages.phase_started(self.run)
        if state is not None:  # only now, since `phase_started` may begin a component's state afresh
            self.session.restore_components()
        self.iterations = state["iterations"] if state is not None else self.draw.planned(train)
        if state is not None:
            self.draw.load_state_dict(state["draw"])

    def look(self, state: Mapping[str, Any] | None = None, *, scoring: bool = True) -> None:
        """Be ready to sample (and to evaluate, if `scoring`) where a saved phase stood, but not to learn."""
        if state is None:
            self.models.prepare(self.wiring.models, self.phase.models)
        self.models.train_only(())
        self._make_engine()
        for member in self.wiring.evaluators if scoring else self.wiring.evaluators[:1]:  # the task is first
            self.session.set_up(member.component, self.run)
        if state is not None:
            self._load(state)
            self.iterations = state["iterations"]
        if scoring:
            self.wiring.evaluation.phase_started(self.run)
        self.session.restore_components()

    def _make_engine(self) -> None:
        wiring, train = self.wiring, self.phase.train
        self.engine = Engine(
            self.models,
            trains=wiring.trains,
            needs=wiring.live,
            unit=wiring.unit,
            budget=train.budget or self.session.budget,
            head_chunk=self.session.head_chunk,
            dtype=train.dtype,
            dropout=train.dropout,
            before_forward=self._seed_forward,
        )

    def iterate(self) -> Iterator[int]:
        """Run the phase; yields after every iteration, at a point that can be committed."""
        asked = self.phase.evaluate
        if self.iteration == 0 and asked is not None:
            evaluate(self)
        while not self.done:
            metrics = self._one_iteration()
            self.log(metrics)
            self.session.display.iteration(self.iteration, metrics)
            if asked is not None and (self.done or (asked.every and self.iteration % asked.every == 0)):
                evaluate(self)
            if self.done:
                self.models.check_guard()
            yield self.iteration

    @property
    def done(self) -> bool:
        return self.iteration >= self.iterations or self.ending is not None

    @property
    def progress(self) -> float:
        return min(1.0, (self.iteration + self._within) / max(1, self.iterations))

    def rng(self, *key: str | int) -> torch.Generator:
        return self.session.seeds.rng(self.repeat, self.place, *key)

    # -- one iteration --------------------------------------------------------------------------------

    def _one_iteration(self) -> dict[str, float]:
        self._times = {}
        started = time.perf_counter()
        train, stages = self.phase.train, self.wiring.stages
        self.models.iteration_started()
        first = self.draw.position
        batches: list[Batch] = []
        seen: list[tuple[Rollout, Reward]] = []
        for _ in range(train.refill + 1):
            examples = self.draw.next(train.prompts)
            self.offset = self.draw.position - len(examples) - first
            rollout, reward = self._collect(stages, examples, self.wiring.columns)
            rollout, reward = self._without_bad(rollout, reward)
            seen.append((rollout, reward))
            with self._timed("advantage"):
                batches.append(stages.advantage(self.run, rollout, reward))
            if sum(len(b.rollout.examples) for b in batches) >= train.prompts or not train.refill:
                break
        batch = self._joined(batches)
        metrics = of_responses(seen)
        metrics["groups"] = float(len(batch.rollout.examples))
        if train.refill:
            metrics["refills"] = len(batches) - 1.0
            if metrics["groups"] < train.prompts:
                self.session.display.note(
                    f"iteration {self.iteration + 1}: {len(batch.rollout.examples)} of {train.prompts} groups "
                    f"after {train.refill} refills"
                )
        self._keep_rows(seen)
        with self._timed("update"):
            if self.wiring.learns:
                metrics |= self._update(self._with_old(batch))
        self.iteration += 1
        self._within = 0.0
        self.models.renew(self.wiring.lagging, self.iteration)
        stages.iteration_done(self.run, metrics)
        self.models.iteration_done()
        metrics["time/iteration"] = time.perf_counter() - started
        return metrics | {f"time/{name}": seconds for name, seconds in self._times.items()}

    def _collect(
        self, stages: Stages, examples: Sequence[Example], columns: Sequence[tuple[str, str]]
    ) -> tuple[Rollout, Reward]:
        """Responses, the columns somebody needs, and their reward."""
        with self._timed("rollout"):
            rollout = stages.rollout(self.run, examples)
        if self.keeps:
            rollout = rollout.with_columns(**{SAMPLED: rollout.texts})
        return self.scored_rollout(stages, rollout, columns)

    def scored_rollout(
        self, stages: Stages, rollout: Rollout, columns: Sequence[tuple[str, str]]
    ) -> tuple[Rollout, Reward]:
        post = self.wiring.task.postprocess
        with blaming(f"`postprocess` of task `{self.wiring.task.name}`"):
            rollout = replace(rollout, texts=tuple(post(text) for text in rollout.texts))
        with self._timed("score"):
            rollout = self.fill_columns(rollout, columns)
        with self._timed("reward"):
            return rollout, stages.reward(self.run, rollout)

    def fill_columns(self, rollout: Rollout, columns: Sequence[tuple[str, str]]) -> Rollout:
        """Add `model.output` columns; what the sampler already gave is not computed again."""
        wanted: dict[str, list[str]] = {}
        for model, output in columns:
            if f"{model}.{output}" not in rollout.columns:
                wanted.setdefault(model, []).append(output)
        found: dict[str, Tensor] = {}
        for model, outputs in wanted.items():
            if model == "policy":
                known = [o for o in outputs if o in ("logprobs", "full_logprobs")]
                for output in known:
                    found[f"policy.{output}"] = self._known_or_scored(rollout, output)
                outputs = [o for o in outputs if o not in known]
            if outputs:
                scored = self._scored_once(rollout, model, outputs)
                found |= {f"{model}.{output}": x_NT for output, x_NT in scored.items()}
        return rollout.with_columns(**found) if found else rollout

    def _scored_once(self, rollout: Rollout, model: str, outputs: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of a model. What one that stays as it is says of a logged response is computed once a run."""
        logged_N = (rollout.logprobs_NT.isnan() & rollout.mask_NT).any(1)
        stays = isinstance(self.models[model], Policy) and model in self.models.guarded
        if not stays or not bool(logged_N.any()):
            scored = self.score(model, rollout, outputs)
            return {output: getattr(scored, field_of(output)) for output in outputs}
        stores = {output: self._remembered(model, output) for output in outputs}
        return scored_once(rollout, logged_N, stores, lambda part: self.score(model, part, outputs))

    def _remembered(self, model: str, output: str) -> Remembered:
        name = f"{model}.{output}-{self.models.guarded[model][:16]}"
        if name not in self._stores:
            session = self.session
            self._stores[name] = Remembered(session.dir.path, session.logs, name, self.models.dtype)
        return self._stores[name]

    def _known_or_scored(self, rollout: Rollout, output: str) -> Tensor:
        """The policy's log-probs: the sampler's, and where a row has none, one scoring."""
        known_NT: Tensor = getattr(rollout, f"{output}_NT")
        missing_N = (known_NT.isnan() & rollout.mask_NT).any(1)
        if not bool(missing_N.any()):
            return known_NT
        rows = missing_N.nonzero()[:, 0]
        scored = getattr(self.score("policy", rollout.take(rows), [output]), f"{output}_NT")
        return known_NT.index_copy(0, rows, scored.to(known_NT))

    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        """Each (weights' version, rollout, output) is computed once."""
        held = self._scored.setdefault(rollout, {})
        version = self.models[model].version
        missing = [name for name in want if (model, version, name) not in held]
        if missing:
            outputs = self.engine.score(model, rollout, missing)
            held |= {(model, version, name): getattr(outputs, field_of(name)) for name in missing}
        return Outputs(**{field_of(name): held[model, version, name] for name in want})

    def _without_bad(self, rollout: Rollout, reward: Reward) -> tuple[Rollout, Reward]:
        """Stop at a NaN or infinite reward, or drop the groups it stands in."""
        bad_N = torch.zeros(len(rollout), dtype=torch.bool, device=rollout.group_N.device)
        guilty = []
        for name, part in reward.parts.items():
            finite = part.isfinite() if part.ndim == 1 else (part.isfinite() | ~rollout.mask_NT).all(1)
            if not bool(finite.all()):
                guilty.append(name)
                bad_N |= ~finite
        if not guilty:
            return rollout, reward
        groups = rollout.group_N[bad_N].unique().tolist()
        ids = [rollout.examples[g].id for g in groups]
        row = int(bad_N.nonzero()[0, 0])
        if self.phase.train.on_bad_reward == "stop":
            kept = self.session.keep_bad(rollout, {name: reward.parts[name] for name in reward.parts})
            raise ComponentError(
                f"the reward `{guilty[0]}` is not finite for {int(bad_N.sum())} of {len(rollout)} responses, the first "
                f"to example `{ids[0]}`: {rollout.texts[row]!r}. The batch is in {kept}; "
                "`train.on_bad_reward: drop` would leave such prompts out"
            )
        share = len(groups) / len(rollout.examples)
        where = {"phase": self.phase.name, "repeat": self.repeat, "iteration": self.iteration + 1}
        self.session.logs.append("dropped.jsonl", {**where, "rewards": guilty, "examples": ids})
        if share > DROPPED_AT_MOST:
            raise ComponentError(
                f"the reward `{guilty[0]}` is not finite for {share:.0%} of the prompts of iteration "
                f"{self.iteration + 1}, more than the {DROPPED_AT_MOST:.0%} that `on_bad_reward: drop` forgives; "
                f"their ids are in {self.session.dir.path / 'dropped.jsonl'}"
            )
        keep = ~torch.isin(rollout.group_N, torch.tensor(groups, device=rollout.group_N.device))
        rows = keep.nonzero()[:, 0]
        return rollout.take(rows), reward.take(rows)

    def _joined(self, batches: Sequence[Batch]) -> Batch:
        """The rounds of a refilled iteration, cut to the wanted number of groups."""
        kept = [b for b in batches if len(b)] or list(batches[:1])
        batch = concat_batches(kept)
        if len(batch.rollout.examples) > self.phase.train.prompts and self.phase.train.refill:
            batch = batch.take(batch.rollout.group_N < self.phase.train.prompts)
        return batch.as_step()

    def _with_old(self, batch: Batch) -> Batch:
        if "old_logprobs" not in self.wiring.live or len(batch) == 0:
            return batch
        old_NT = self._known_or_scored(batch.rollout, "logprobs")
        return replace(batch, old=torch.where(batch.rollout.mask_NT, old_NT, old_NT.new_zeros(())))

    # -- learning -------------------------------------------------------------------------------------

    def _update(self, batch: Batch) -> Mapping[str, float]:
        assert self.learner is not None
        if len(batch) == 0:
            self.session.display.note(f"iteration {self.iteration + 1}: no responses left to learn from")
            return {"empty_steps": 1.0}
        self.updating, self._responded, self._epochs = True, 0, 0
        try:
            own = self.wiring.stages.update(self.run, batch)
            if own is not None:
                self._stepped()
                return own
            return self.learn(batch)
        except ComponentError as error:
            where = self.session.keep_bad(
                batch.rollout, {"advantage": batch.advantage_NT, **batch.reward.parts}
            )
            raise ComponentError(f"{error} (the batch is in {where})") from error
        finally:
            self.updating = False

    def learn(self, batch: Batch, only: Collection[str] | None = None) -> dict[str, float]:
        """Epochs × minibatches of the losses; an `update` hook may ask for it again and again."""
        assert self.learner is not None
        updating, self.updating = self.updating, False  # what follows keeps its gradients from hooks
        first, self._epochs = self._epochs, self._epochs + self.phase.train.epochs
        try:
            with self.learner.training(only):
                return self.learner.learn(
                    batch,
                    shuffle=lambda epoch: self.rng("minibatches", self.iteration, first + epoch),
                    progress=self._progress_within,
                    ready=lambda metrics: self.wiring.stages.step_ready(self.run, metrics),
                    stepped=self._stepped,
                )
        finally:
            self.updating = updating

    def _progress_within(self, share: float) -> float:
        self._within = share
        return self.progress

    def _stepped(self) -> None:
        self.step += 1

    def _losses(self, batch: Batch, now: Outputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.wiring.stages.loss(self.run, batch, now)

    def _seed_forward(self, micro: int, part: int) -> None:
        if self.phase.train.dropout:
            self.session.seeds.seed_forward("dropout", self.repeat, self.place, self.step, micro, part)

    def respond(self, examples: Sequence[Example]) -> tuple[Rollout, Reward]:
        """Trials of an `update` hook, each call with uniforms of its own."""
        self._responded += 1
        key = ("respond", self.repeat, self.place, self.iteration, self._responded)
        rollout = self.sample(examples, self.generation, key, 0)
        return self.scored_rollout(self.wiring.stages, rollout, self.wiring.columns)

    # -- sampling and the log ---------------------------------------------------------------------------

    def sample(
        self,
        examples: Sequence[Example],
        how: Sampling,
        key: tuple[str | int, ...],
        first: int,
        *,
        free: bool = False,
    ) -> Rollout:
        """The policy's responses; position p of the draw always meets the same uniforms."""
        policy = self.models.policy
        steps = min(how.max_new_tokens, policy.horizon or how.max_new_tokens)
        uniforms = self.session.seeds.uniforms(
            *key, positions=range(first, first + len(examples)), samples=how.samples, steps=steps
        ).to(self.models.device)
        constrained = [c.constraint for c in self.wiring.components if c.constraint is not None]
        within = constrained[0] if constrained and not free else None
        with torch.no_grad(), self.engine.autocast():
            return policy.sample(examples, how, uniforms, within)

    def column(self, name: str, compute: Compute, key: Sequence[str | int | float]) -> Tensor:
        def score(examples: Sequence[Example]) -> tuple[Rollout, Reward]:
            rollout = self.logged(examples)
            return self.scored_rollout(self.wiring.stages, rollout, self.wiring.reward_columns)

        def full_key() -> str:
            task = self.phase.task
            parts = {
                "data": self.session.data_fingerprint(self.wiring, self.draw.data),
                "task": [task.component, task.options.model_dump_json()],
                # All of them: `compute` may score with any model, and a value reads its trunk.
                "models": {name: fingerprint(model) for name, model in sorted(self.models.items())},
                "rewards": [
                    [i.component, i.options.model_dump_json(), i.weight, i.name] for i in self.phase.rewards
                ],
                "key": [str(k) for k in key],
            }
            return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

        return self.columns.make(name, full_key, score, compute)

    def logged(self, examples: Sequence[Example]) -> Rollout:
        """The examples' logged responses, with the scores stored with them and the columns of their rows."""
        for example in examples:
            if example.scores and len(example.scores) != len(example.responses):
                raise ComponentError(
                    f"example `{example.id}` has {len(example.responses)} responses and {len(example.scores)} scores"
                )
        rollout = self._attach(self.models.policy.encode(examples))
        scores = [s for e in examples for s in e.scores or [math.nan] * len(e.responses)]
        score_N = torch.tensor(scores, dtype=torch.float64).to(rollout.logprobs_NT)
        return rollout.with_columns(score=score_N)

    def _attach(self, rollout: Rollout) -> Rollout:
        first_G = torch.tensor([e.row for e in rollout.examples], device=rollout.group_N.device)
        if len(rollout) == 0 or bool((first_G < 0).any()):
            return rollout
        place_N = torch.arange(len(rollout), device=rollout.group_N.device)
        starts_G = torch.zeros_like(first_G).scatter_reduce(
            0, rollout.group_N, place_N, "amin", include_self=False
        )
        return self.columns.attach(rollout, first_G[rollout.group_N] + place_N - starts_G[rollout.group_N])

    def _keep_rows(self, seen: Sequence[tuple[Rollout, Reward]]) -> None:
        """Write down the iteration's responses and scores, for a later phase or for another run."""
        if not self.keeps:
            return
        iteration = self.iteration + 1  # as metrics.jsonl counts
        about = {**self.where, "iteration": iteration, "step": self.step, "task": self.phase.task.component}
        policy = self.models.policy
        made = (row for rollout, reward in seen for row in rows_of(rollout, reward, policy, about))
        for g, row in enumerate(made):
            row["meta"][OURS]["example"] = row["id"]
            row["id"] = f"{row['id']}#{iteration}.{g}"
            self.session.logs.append(self.session.rows_file(self.repeat, self.phase.name), row)

    # -- bookkeeping --------------------------------------------------------------------------------------

    @property
    def where(self) -> dict[str, Any]:
        """Where the run stands, as every line of its logs says."""
        return {"phase": self.phase.name, "repeat": self.repeat, "iteration": self.iteration}

    def log(self, metrics: Mapping[str, float], *, evaluation: bool = False) -> None:
        """A line of metrics.jsonl."""
        tick = self.session.ticks + self.iteration
        self.session.logs.metrics({**self.where, "step": self.step, **metrics}, step=tick)
        self.session.remember(metrics, evaluation=evaluation)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._times[name] = self._times.get(name, 0.0) + time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """What a commit point keeps beside weights and components."""
        return {
            "iteration": self.iteration,
            "iterations": self.iterations,
            "step": self.step,
            "ending": self.ending,
            "draw": self.draw.state_dict(),
            "columns": dict(self.columns.folders),
            "guarded": self.models.guarded,
            "budget": self.engine.budget,
            "head_chunk": self.engine.head_chunk,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.iteration, self.step, self.ending = state["iteration"], state["step"], state["ending"]
        self.columns.folders = dict(state["columns"])
        self.models.guarded = dict(state["guarded"])
        self.engine.budget, self.engine.head_chunk = state["budget"], state["head_chunk"]
