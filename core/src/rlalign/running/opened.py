"""A run at its last checkpoint, or a model, opened to be measured and sampled. Nothing is trained.

It has the phase and the evaluation of a run, in a temporary folder: whatever the core or a component writes
down, the run itself stays as it is.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rlalign.config import places
from rlalign.config.pipeline import Pipeline
from rlalign.config.registry import Registry
from rlalign.config.validate import check
from rlalign.data.batch import Reward
from rlalign.data.example import Example, Prompt
from rlalign.data.rollout import SAMPLED, Rollout
from rlalign.data.settings import Sampling
from rlalign.errors import ComponentError, ConfigError, refusing
from rlalign.interface.component import Component
from rlalign.interface.environment import Environment
from rlalign.randomness import Seeds
from rlalign.records import checkpoint
from rlalign.records.columns import data_fingerprint
from rlalign.records.environment import read_lock
from rlalign.records.kept import write_rows
from rlalign.records.logs import Logs, plain
from rlalign.records.result import Result
from rlalign.records.rows import OURS, rows_of
from rlalign.records.rundir import RunDir
from rlalign.records.tensors import load_tensors
from rlalign.records.weights import load_weights
from rlalign.running import evaluation, shown
from rlalign.running.asking import AskedData, NoTask, before
from rlalign.running.card import Card, save_folder
from rlalign.running.components import keyed
from rlalign.running.display import PlainDisplay
from rlalign.running.given import NoModel
from rlalign.running.phase import RunningPhase
from rlalign.running.plan import new_tokens
from rlalign.running.planning import plan_phases
from rlalign.running.signatures import signatures_of
from rlalign.running.view import open_phase
from rlalign.running.workspace import Workspace

LOGPROBS = (("policy", "logprobs"), ("policy", "full_logprobs"))


class Opened(Workspace):
    """What can be asked of a run or of a model without changing it."""

    data: AskedData
    phase: RunningPhase
    leaves_files = False

    def __init__(self, pipeline: Pipeline, registry: Registry, name: str, place: int = 0) -> None:
        super().__init__(pipeline, registry, PlainDisplay(sys.stderr))
        self.data = AskedData(pipeline, self.plans, self.models, lambda: self.dir, self.display.note)
        self.name = name
        self.place = place
        self.repeat = 0
        self.noted: Mapping[str, str] = {}
        """The signatures that the run wrote down."""
        self.origin: dict[str, Any] = {}
        """Where its responses come from, for exported rows."""
        self._phase_state: Mapping[str, Any] | None = None
        self._states: Mapping[str, Any] = {}
        """Of components, at the checkpoint."""
        self._open_to: tuple[bool, bool] | None = None
        """Whether the phase is open over the split, and whether it can score; None: it is not open."""
        self.dir = RunDir(tempfile.mkdtemp(prefix="rlalign-"))
        weakref.finalize(self, shutil.rmtree, self.dir.path, ignore_errors=True)
        self.logs = Logs(self.dir.path)

    def load_run(self, run: RunDir, saved: checkpoint.Checkpoint, whole: Pipeline) -> None:
        """Models and component states of a checkpoint. `whole` is the pipeline without overrides."""
        self.build_policy()
        self.load(saved)
        # An override may have parted or joined components, or changed one: a state is of what it was then.
        before = keyed(plan_phases(whole, self.registry)[0] if whole is not self.pipeline else self.plans)
        states = {
            _identity(component): saved.components[key]
            for key, component in before.items()
            if key in saved.components
        }
        now = {key: _identity(component) for key, component in self.components.keyed.items()}
        self._states = {key: states[what] for key, what in now.items() if what in states}
        self._phase_state, self.repeat = saved.loop["phase"], saved.loop["repeat"]
        self.noted, self.lock = Result(run.path).signatures, read_lock(run.lock, provenance=True)
        self.origin = {"run": self.name, "lock": hashlib.sha256(run.lock.read_bytes()).hexdigest()}

    def load_model(self, weights: Path | None) -> None:
        """The policy, with the weights in a file unless it loads its own."""
        self.models.new_tokens = new_tokens(self.plans, training=False)
        self.build_policy()
        if weights is not None:
            try:
                load_weights(self.models.policy, load_tensors(weights))
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{weights}: cannot be read: {error}") from None
        self.origin = {"model": self.name}

    def ready(self, seed: int | None = None) -> Opened:
        """Be able to evaluate; `seed` stands in place of the run's."""
        if seed is not None:  # only now: what models make again at each start follows from the run's
            self.seeds = Seeds(seed)
        self._look()
        return self

    def _look(self, prompts: Sequence[Example] = (), *, scoring: bool = True) -> None:
        """Open the phase, unless it is open: over these prompts or else the split, able to score or not."""
        asked = (not prompts, scoring)
        if self._open_to is not None and all(
            has >= needs for has, needs in zip(self._open_to, asked, strict=True)
        ):
            self.phase.untouched.evaluation_started()
            return
        with refusing():
            plan = self.plans[self.place]
            if not prompts and isinstance(plan.task, NoTask):
                raise ConfigError(f"{self.name}: a model says nothing of what to measure it on: name a task")
            if not prompts and plan.settings.evaluate is None:
                raise ConfigError(
                    f"{self.name}: the phase `{plan.settings.name}` has no `evaluate` section; name a split to use"
                )
            self.data.prompts = list(prompts)
            self.components.saved = dict(self._states)
            self.phase = open_phase(self, plan, self.repeat, self.place)
            self.phase.look(self._phase_state, scoring=scoring)
            self._open_to = asked

    def _as_examples(self, prompts: Sequence[Prompt | Example], system: str | None = None) -> list[Example]:
        """A text is put as the task puts its own."""
        plan, texts = self.plans[self.place], [p for p in prompts if isinstance(p, str)]
        if system is not None and len(texts) < len(prompts):
            raise ConfigError("a system message goes with prompts of plain text; write it into the messages")
        said = before(self.models.opened(), plan.task, plan.settings, system) if texts else None
        read = []
        for i, prompt in enumerate(prompts, 1):
            if isinstance(prompt, str) and said is not None:
                prompt = [*said, {"role": "user", "content": prompt}]
            read.append(prompt if isinstance(prompt, Example) else Example(f"prompt-{i}", prompt))
        return read

    def _read(
        self, prompts: Sequence[Prompt | Example], responses: str, system: str | None = None
    ) -> list[Example]:
        """Prompts as examples, once the policy can read them beside such responses: `sampled` or `logged` ones."""
        read = self._as_examples(prompts, system)
        if refused := self.models.opened().refuse(read, [responses]):
            first = min(refused)
            raise ConfigError(f"prompt {first + 1} cannot be read: {refused[first]}")
        return read

    # -- what can be asked ----------------------------------------------------------------------------

    @property
    def where(self) -> dict[str, Any]:
        """Where the run stands, or which model it is."""
        return {**self.phase.where, "step": self.phase.step} if self._phase_state else dict(self.origin)

    def evaluate(self, *, logged: bool = False) -> dict[str, Any]:
        """What an evaluation logs, as a line of metrics.jsonl: of responses sampled now, or of `logged` ones."""
        self._look()
        return self._figures(*evaluation.measured(self.phase, logged=logged))

    def evaluate_by_example(self) -> tuple[dict[str, Any], dict[str, list[float]], str]:
        """What `evaluate` says, by its names one value an example, and a hash of the examples.

        Values are there of what is a mean over responses. The hash leaves out logged responses.
        """
        self._look()
        rollout, reward = evaluation.measured(self.phase)
        asked = [
            replace(example, responses=(), scores=(), finished=()) for example in evaluation.compared(rollout)
        ]
        values = evaluation.by_example(self.phase, rollout, reward)
        return self._figures(rollout, reward), values, data_fingerprint(asked)

    def _figures(self, rollout: Rollout, reward: Reward) -> dict[str, Any]:
        figures = evaluation.metrics_of(self.phase, rollout, reward)
        if isinstance(self.phase.models.policy, NoModel):  # whose tokens are bytes
            figures = {name: x for name, x in figures.items() if name not in ("eval/tokens", "eval/length")}
        return {**self.where, **figures}

    @property
    def signatures(self) -> dict[str, str]:
        """What the figures of `evaluate` depend on beside the texts, where a score says so, by its name."""
        self._look()
        return signatures_of(self.phase.plan.evaluators)

    def sample(
        self,
        prompts: Sequence[Prompt | Example] | None = None,
        *,
        system: str | None = None,
        seed: int | None = None,
        **generation: Any,
    ) -> list[dict[str, Any]]:
        """Fresh responses as samples.jsonl shows them: to the split's first prompts, scored, or to these, unscored.

        A text is put as the task puts its own: in a chat behind its system message, or behind `system`. Messages, and
        what an `Example` holds, stay as they are. `generation` stands above what the pipeline says:
        `samples=4, temperature=0.7`.
        """
        _check_generation(generation)
        if prompts is None and system is not None:
            raise ConfigError("a system message goes with prompts")
        if prompts is not None and isinstance(self.plans[self.place].task, Environment):
            raise ConfigError(
                "the task is an environment, which says itself what is asked: leave the prompts out"
            )
        given = None if prompts is None else self._read(prompts, "sampled", system)
        if given == []:
            return []
        self._look(given or (), scoring=given is None)
        phase, before = self.phase, self.seeds
        try:
            self.seeds = before if seed is None else Seeds(seed)
            examples = given or evaluation.examples(phase)
            rollout = evaluation.responses(phase, examples, generation, to_score=given is None)
        finally:
            self.seeds = before
        where = phase.where if self._phase_state else self.origin
        if given is None:
            rollout, reward = evaluation.scored(phase, rollout)
            return [{**where, **row} for row in shown.sampled(phase, rollout, reward, len(rollout))]
        task = phase.plan.task
        return [
            {**where, "prompt": rollout.examples[g].prompt, "response": task.postprocess(text)}
            for g, text in zip(rollout.group_N.tolist(), rollout.texts, strict=True)
        ]

    def score(
        self,
        prompts: Sequence[Prompt | Example],
        responses: Sequence[str | Sequence[str]],
        *,
        rewards: bool = True,
    ) -> list[dict[str, Any]]:
        """A row for each response, of which a prompt has one or a list: its log-prob, its tokens, its rewards.

        The log-prob is the policy's at temperature 1, a sum over the response's tokens. A reward that needs more
        than a prompt takes it from an `Example`. `rewards=False` leaves the rewards out, and does not load them.
        """
        if len(prompts) != len(responses):
            raise ConfigError(f"{len(responses)} responses are given to {len(prompts)} prompts")
        texts = [(one,) if isinstance(one, str) else tuple(one) for one in responses]
        examples = self._read(
            [
                replace(example, responses=given, scores=(), finished=())
                for example, given in zip(self._as_examples(prompts), texts, strict=True)
            ],
            "logged",
        )
        if not any(texts):
            return []
        self._look(examples, scoring=rewards)
        rollout = self.models.policy.encode(examples)
        logprobs_NT = self.phase.outputs.policy_logprobs(rollout)
        rows = [
            {"prompt": rollout.examples[g].prompt, "response": text, "logprob": logprob, "tokens": tokens}
            for g, text, logprob, tokens in zip(
                rollout.group_N.tolist(),
                rollout.texts,
                torch.where(rollout.mask_NT, logprobs_NT, 0.0).sum(1).tolist(),
                rollout.mask_NT.sum(1).tolist(),
                strict=True,
            )
        ]
        if not rewards:
            return rows
        rollout, reward = evaluation.scored(self.phase, rollout)
        given = shown.sampled(self.phase, rollout, reward, len(rollout))
        return [{**row, "scores": scored["scores"]} for row, scored in zip(rows, given, strict=True)]

    def rows(self) -> list[dict[str, Any]]:
        """The evaluation's responses as logged data: what the task `dataset` reads back as it stands."""
        self._look()
        phase = self.phase
        asked = phase.settings.evaluate
        assert asked is not None
        sampled = evaluation.responses(phase, evaluation.examples(phase))
        sampled = sampled.with_columns(**{SAMPLED: sampled.texts})
        rollout, reward = evaluation.scored(phase, sampled)
        filled = phase.outputs.with_columns(rollout, LOGPROBS)
        known = {f"{output}_NT": filled.columns[f"{model}.{output}"] for model, output in LOGPROBS}
        about = {
            **self.origin,
            **self.where,
            "task": phase.settings.task.component,
            "split": asked.split,
            "seed": self.seeds.seed,
            "version": metadata.version("rlalign"),
        }
        made = rows_of(replace(filled, **known), reward, self.models.policy, about)
        for row in made:
            if "scores" in row and plain(row["scores"]) != row["scores"]:
                raise ComponentError(
                    f"example `{row['id']}`: a score is not finite ({plain(row['meta'][OURS]['rewards'])}), and "
                    "data with such a score could not be learned from; leave out its reward with `evaluate.use=[…]`"
                )
        return made

    def export_responses(self, file: Path | str) -> str:
        """Write `rows` into a .jsonl file; says what was written."""
        return write_rows(Path(file), self.rows())

    def export(self, folder: Path | str, *, float32: bool = False) -> Path:
        """The policy as a model folder, with a card: in the precision it came in, or in `float32` as it was trained."""
        folder = Path(folder)
        if self._phase_state is None:
            raise ConfigError(f"{self.name}: is a model already; copy its folder")
        if folder.exists():
            raise ConfigError(f"{folder}: exists; move it away, or choose another place")
        phase, at = self.plans[self.place].settings.name, self._phase_state["iteration"]
        origin = f"Exported from the run {self.name} after iteration {at} of {phase}."
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.models.policy.saves_float32 = float32
        card = Card(
            self.name, self.pipeline, self.last, self.measured, self.noted, self.spread, self.lock, origin
        )
        save_folder(self.models.policy, folder, card)
        return folder


def _identity(component: Component) -> tuple[type[Component], str, str]:
    """What a component's state belongs to, wherever it stands."""
    return type(component), component.config.model_dump_json(), component.name


def _check_generation(said: Mapping[str, Any]) -> None:
    problems: list[str] = []
    check(
        Sampling,
        said,
        Path.cwd(),
        lambda keys, text: problems.append(f"generation.{places.dotted(keys)}: {text}"),
    )
    if problems:
        raise ConfigError("\n".join(problems))
