"""Opens a run at a checkpoint, or a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlalign.config import places, words
from rlalign.config.from_python import as_overrides
from rlalign.config.load import load_pipeline, pipeline_text
from rlalign.config.registry import Registry
from rlalign.data.limits import CONFIG_BYTES, require_file
from rlalign.errors import ConfigError
from rlalign.interface.policy import NoRoom
from rlalign.records import checkpoint
from rlalign.records.rundir import RunDir, note_others
from rlalign.running.asking import NoTask
from rlalign.running.checkpointing import checkpoint_at, last_checkpoint, place_of, without_checkpoint
from rlalign.running.given import NoModel
from rlalign.running.opened import Opened

SHORTER = (32, 16, 8)
"""Tokens of a response, where a model opened by itself has no room for as many as are usual."""
ALL = 2**31 - 1
"""Examples, where all are measured."""


def open_run(
    path: Path,
    asked: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    at: int | Literal["best"] | None = None,
    registry: Registry | None = None,
    said: str = "command line",
) -> Opened:
    """A run at its last checkpoint or `at` another; `asked` and `overrides` change what the phase there evaluates."""
    run, registry = RunDir.open(path, exclusive=False), registry or Registry()
    saved = last_checkpoint(run, previous=False) if at is None else checkpoint_at(run, at)
    if saved is None:
        raise ConfigError(without_checkpoint(run))
    place = saved.loop["place"]
    text = pipeline_text(run.pipeline)
    scope = f"phases.{place}." if "phases" in places.read(text, str(run.pipeline)).data else ""
    changes = [f"{scope}{one}" for one in (*_as_overrides(asked), *_of_evaluation(overrides))]
    load = partial(load_pipeline, run.pipeline, registry=registry, observers=False)
    whole = load()
    place_of(saved, whole.phases, whole.repeat)
    pipeline = load(changes, said=said) if changes else whole
    opened = Opened(pipeline, registry, run.name, place)
    with checkpoint.fitting(saved.path):
        opened.load_run(run, saved, whole)
    return opened


def open_texts(
    asked: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    registry: Registry | None = None,
    said: str = "command line",
) -> Opened:
    """No model: the responses that a task's examples carry, all of `train` unless asked otherwise."""
    tree = {
        "policy": f"{NoModel.__module__}:NoModel",
        "task": asked.get("task", f"{NoTask.__module__}:NoTask"),
        "algorithm": "collect",
        "train": {"iterations": 1},
        "evaluate": {"use": [], "split": "train", "examples": ALL, **asked.get("evaluate", {})},
    }
    text, registry = places.dump(places.escape(tree)), registry or Registry()
    pipeline = load_pipeline(Path(said), _of_evaluation(overrides), registry=registry, text=text, said=said)
    opened = Opened(pipeline, registry, "given texts")
    opened.load_model(None)
    return opened


def open_model(
    path: str,
    asked: Mapping[str, Any],
    overrides: Sequence[str] = (),
    policy: Any = None,
    *,
    registry: Registry | None = None,
    said: str = "command line",
) -> Opened:
    """A model folder, or a model on the hub, with a task and rewards named by `asked`."""
    registry = registry or Registry()
    note_others(Path(path))
    config = _config_of(Path(path))
    entry = policy if policy is not None else _guess(config)
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"policy: expected a policy, `name` or `name: {{…}}`, found {words.found(policy)}")
    ((component, options),) = entry.items()
    options = dict(options or {})
    weights = None
    try:
        cls = registry.load(component, Path.cwd()).cls
    except ConfigError as error:
        where = "policy" if policy is not None else Path(path) / "config.json"
        raise ConfigError(f"{where}: {error}") from None
    if "path" in cls.Config.model_fields:
        options = {"path": str(Path(path).absolute()) if Path(path).exists() else path, **options}
    else:
        held = places.expressions({key: value for key, value in config.items() if key != "model"})
        options = {**held, **options}
        weights = Path(path) / "model.safetensors"
    tree = {
        "policy": {component: options},
        "task": asked.get("task", f"{NoTask.__module__}:NoTask"),
        "algorithm": "collect",
        "train": {"iterations": 1},
        "evaluate": {"use": [], **asked.get("evaluate", {})},
    }
    changes = _of_evaluation(overrides)
    for most in (None, *SHORTER):  # as long as is usual, or as the model has room for
        if most is not None:
            tree["generation"] = {"max_new_tokens": most}
        text = places.dump(places.escape(tree))
        pipeline = load_pipeline(Path(said), changes, registry=registry, text=text, said=said)
        opened = Opened(pipeline, registry, path)
        try:
            opened.load_model(weights)
        except NoRoom:
            if most == SHORTER[-1] or any("max_new_tokens" in one for one in changes):
                raise
        else:
            return opened
    raise AssertionError("the last one is raised")


def _config_of(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not folder.exists() or (folder.suffix == ".gguf" and folder.is_file()):
        return {}  # on the hub, or all in one file
    require_file(file, CONFIG_BYTES)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: is neither a run (pipeline.yaml) nor a model (config.json)") from None
    except (OSError, ValueError, RecursionError) as error:
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
    return as_overrides(flat)


def _of_evaluation(overrides: Sequence[str]) -> list[str]:
    for one in overrides:
        if not one.startswith("evaluate."):
            raise ConfigError(
                f"{one}: only `evaluate.…=…` can be said here, for instance evaluate.generation.temperature=0.7"
            )
    return list(overrides)
