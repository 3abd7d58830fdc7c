"""A run at its last checkpoint, or a model, opened to be measured and sampled. Nothing is trained.

It has the phase and the evaluation of a run, in a temporary folder: whatever the core or a component writes
down, the run itself stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Pipeline
from rlalign.config.registry import Registry
from rlalign.config.words import found
from rlalign.data.example import Example
from rlalign.errors import ComponentError, ConfigError
from rlalign.randomness import Seeds
from rlalign.records import checkpoint
from rlalign.records.logs import Logs, plain
from rlalign.records.rows import OURS, SAMPLED, rows_of
from rlalign.records.rundir import RunDir
from rlalign.running import evaluation
from rlalign.running.card import card
from rlalign.running.data import Data
from rlalign.running.display import PlainDisplay
from rlalign.running.models import load_weights, save_folder
from rlalign.running.plan import PhasePlan
from rlalign.running.planning import plan_phases
from rlalign.running.view import open_phase
from rlalign.running.workspace import Workspace

LOGPROBS = (("policy", "logprobs"), ("policy", "full_logprobs"))


class AskedData(Data):
    """The data of a phase that trains nothing is what will be answered."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.prompts: list[Example] = []

    def training(self, plan: PhasePlan, repeat: int) -> Sequence[Example]:
        asked = plan.settings.evaluate
        assert asked is not None
        data = self.prompts or self.split(plan, asked.split)
        if len(data) == 0:
            raise ConfigError(f"the task has no examples in `{asked.split}`; name another --split")
        return data


class Opened(Workspace):
    """What can be asked of a run or of a model without changing it."""

    data: AskedData

    def __init__(self, pipeline: Pipeline, registry: Registry, name: str, place: int = 0) -> None:
        super().__init__(pipeline, registry, PlainDisplay(sys.stderr))
        self.data = AskedData(pipeline, self.models, lambda: self.dir, self.display.note)
        self.name = name
        self.place = place
        self.repeat = 0
        self.origin: dict[str, Any] = {}
        """Where its responses come from, for exported rows."""
        self._phase_state: Mapping[str, Any] | None = None
        self.dir = RunDir(tempfile.mkdtemp(prefix="rlalign-"))
        weakref.finalize(self, shutil.rmtree, self.dir.path, ignore_errors=True)
        self.logs = Logs(self.dir.path)

    def load_run(self, run: RunDir, saved: checkpoint.Checkpoint, whole: Pipeline) -> None:
        """Models and component states of a checkpoint. `whole` is the pipeline without overrides."""
        self.build_policy()
        self.load(saved)
        # States are numbered as components are built; an override may have moved the numbers.
        before = (
            plan_phases(whole, self.registry)[1].built if whole is not self.pipeline else self.builder.built
        )
        states = {
            key: saved.components[f"{i}:{component.name}"]
            for i, (key, component) in enumerate(before.items())
            if f"{i}:{component.name}" in saved.components
        }
        self.components.saved = {
            f"{i}:{component.name}": states[key]
            for i, (key, component) in enumerate(self.builder.built.items())
            if key in states
        }
        self._phase_state, self.repeat = saved.loop["phase"], saved.loop["repeat"]
        self.origin = {"run": self.name, "lock": hashlib.sha256(run.lock.read_bytes()).hexdigest()}

    def load_model(self, weights: Path | None) -> None:
        """The policy, with the weights in a file unless it loads its own."""
        self.build_policy()
        if weights is not None:
            try:
                load_weights(self.models.policy, checkpoint.load_tensors(weights))
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{weights}: cannot be read: {error}") from None
        self.origin = {"model": self.name}

    def ready(self, seed: int | None = None, prompts: Sequence[str] = ()) -> Opened:
        """Make the phase, able to sample; `seed` stands in place of the run's, `prompts` of the split's."""
        if seed is not None:  # only now: what models make again at each start follows from the run's
            self.seeds = Seeds(seed)
        self.data.prompts = [Example(f"prompt-{i}", text) for i, text in enumerate(prompts, 1)]
        if refused := self.models.opened().refuse(self.data.prompts):
            first = min(refused)
            raise ConfigError(f"prompt {first + 1} cannot be read: {refused[first]}")
        self.phase = open_phase(self, self.plans[self.place], self.repeat, self.place)
        self.phase.look(self._phase_state, scoring=not prompts)
        return self

    # -- what can be asked, once it is ready ----------------------------------------------------------

    @property
    def where(self) -> dict[str, Any]:
        """Where the run stands, or which model it is."""
        return {**self.phase.where, "step": self.phase.step} if self._phase_state else dict(self.origin)

    def metrics(self) -> dict[str, Any]:
        """What an evaluation logs, as a line of metrics.jsonl."""
        phase = self.phase
        rollout, reward = evaluation.scored(phase, evaluation.responses(phase, evaluation.examples(phase)))
        return {**self.where, **evaluation.metrics_of(phase, rollout, reward)}

    def samples(self) -> list[dict[str, Any]]:
        """Fresh responses as samples.jsonl shows them; those to one's own prompts are not scored."""
        phase = self.phase
        rollout = evaluation.responses(phase, self.data.prompts or evaluation.examples(phase))
        if not self.data.prompts:
            rollout, reward = evaluation.scored(phase, rollout)
            return [{**phase.where, **row} for row in evaluation.shown(rollout, reward, len(rollout))]
        task = phase.plan.task
        return [
            {**phase.where, "prompt": rollout.examples[g].prompt, "response": task.postprocess(text)}
            for g, text in zip(rollout.group_N.tolist(), rollout.texts, strict=True)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """The evaluation's responses as logged data: what the task `dataset` reads back as it stands."""
        phase = self.phase
        asked = phase.settings.evaluate
        assert asked is not None
        sampled = evaluation.responses(phase, evaluation.examples(phase))
        sampled = sampled.with_columns(**{SAMPLED: sampled.texts})
        rollout, reward = evaluation.scored(phase, sampled)
        filled = phase.scorer.with_columns(rollout, LOGPROBS)
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

    def save_policy(self, folder: Path) -> None:
        """The policy as a model folder, with a card."""
        assert self._phase_state is not None
        phase = self.plans[self.place].settings.name
        origin = (
            f"Exported from the run {self.name} after iteration {self._phase_state['iteration']} of {phase}."
        )
        save_folder(self.models.policy, folder, card(self.name, self.pipeline, self.last, origin))


# -- opening ----------------------------------------------------------------------------------------------


def open_run(
    path: Path,
    asked: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    evaluates: bool = True,
    registry: Registry | None = None,
) -> Opened:
    """A run at its last checkpoint; `asked` and `overrides` change what its last phase evaluates."""
    run, registry = RunDir.open(path, exclusive=False), registry or Registry()
    found = checkpoint.find(run.checkpoints)
    if not found:
        raise ConfigError(f"{path}: nothing is saved yet: {_without_checkpoint(run)}")
    saved = checkpoint.read(run.checkpoints, found[-1])
    place = saved.loop["place"]
    text = run.pipeline.read_text(encoding="utf-8")
    scope = f"phases.{place}." if "phases" in places.read(text, str(run.pipeline)).data else ""
    changes = [f"{scope}{one}" for one in (*_as_overrides(asked), *_of_evaluation(overrides))]
    whole = load_pipeline(run.pipeline, registry=registry)
    pipeline = load_pipeline(run.pipeline, changes, registry=registry) if changes else whole
    phase = pipeline.phases[place]
    if phase.evaluate is None and evaluates:
        raise ConfigError(
            f"{path}: the phase `{phase.name}` has no `evaluate` section; say what to use: --split NAME"
        )
    opened = Opened(pipeline, registry, run.name, place)
    opened.load_run(run, saved, whole)
    return opened


def _without_checkpoint(run: RunDir) -> str:
    if run.model.is_dir():
        return f"its checkpoints are gone; its model is still there: use {run.model}"
    return f"wait for its first iteration, or go on with it: `rlalign run --resume {run.path}`"


def open_model(
    path: str,
    asked: Mapping[str, Any],
    overrides: Sequence[str] = (),
    policy: Any = None,
    *,
    registry: Registry | None = None,
) -> Opened:
    """A model folder, or a model on the hub, with a task and rewards named by `asked`."""
    registry = registry or Registry()
    said = _config_of(Path(path))
    if "task" not in asked:
        raise ConfigError(f"{path}: a model says nothing of what to measure it on: name a --task")
    entry = policy if policy is not None else _guess(said)
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"--policy: expected a policy, `name` or `name: {{…}}`, found {found(policy)}")
    ((component, options),) = entry.items()
    options = dict(options or {})
    weights = None
    if "path" in registry.load(component, Path.cwd()).cls.Config.model_fields:
        options = {"path": str(Path(path).absolute()) if Path(path).exists() else path, **options}
    else:
        options = {**{key: value for key, value in said.items() if key != "model"}, **options}
        weights = Path(path) / "model.safetensors"
    tree = {
        "policy": {component: options},
        "task": asked["task"],
        "algorithm": "collect",
        "train": {"iterations": 1},
        "evaluate": {"use": [], **asked.get("evaluate", {})},
    }
    text = places.dump(places.escape(tree))
    pipeline = load_pipeline(Path("command line"), _of_evaluation(overrides), registry=registry, text=text)
    opened = Opened(pipeline, registry, path)
    opened.load_model(weights)
    return opened


def _config_of(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not folder.exists():
        return {}  # on the hub
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: is neither a run (pipeline.yaml) nor a model (config.json)") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(said, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return said


def _guess(said: Mapping[str, Any]) -> str:
    """The policy that wrote a model's config.json."""
    if isinstance(said.get("model"), str):
        return str(said["model"])
    return "seq2seq-lm" if said.get("is_encoder_decoder") else "causal-lm"


def _as_overrides(asked: Mapping[str, Any]) -> list[str]:
    """`{task: …, evaluate: {split: …}}` as `key=value`."""
    flat = {key: value for key, value in asked.items() if key != "evaluate"}
    flat |= {f"evaluate.{key}": value for key, value in asked.get("evaluate", {}).items()}
    return [f"{key}={json.dumps(value)}" for key, value in flat.items()]


def _of_evaluation(overrides: Sequence[str]) -> list[str]:
    for one in overrides:
        if not one.startswith("evaluate."):
            raise ConfigError(
                f"{one}: only `evaluate.…=…` can be said here, for instance evaluate.generation.temperature=0.7"
            )
    return list(overrides)
