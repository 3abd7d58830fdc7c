"""All that this package takes from inside rlalign. Whoever moves rlalign's modules changes this file only."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlalign.config import clusters, places
from rlalign.config.pipeline import ITEM_KEYS
from rlalign.errors import ComponentError, ConfigError, RLAlignError
from rlalign.interface.cluster import Cluster
from rlalign.running.figures import duration

__all__ = ["ITEM_KEYS", "Cluster", "ConfigError", "RLAlignError", "cluster", "duration", "read_yaml"]

Components = Mapping[str, type[Any]]
"""Components that a study brings itself, by the names that its pipelines use."""
Tree = dict[str, Any]


def cluster(said: str) -> Cluster:
    """The cluster that `--jobs` names."""
    return clusters.find(said, "--jobs")


def read_yaml(path: Path) -> tuple[Tree, Callable[[Sequence[Any]], str]]:
    """A YAML file, and a function that says for a path of keys in which line of the file it stands."""
    try:
        tree = places.read(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return tree.data, lambda keys: tree.place(tuple(keys))


def check(pipeline: Tree, folder: Path, components: Components) -> None:
    """Raise a ConfigError that says what is wrong with a pipeline or how its parts do not fit. No model is loaded."""
    from rlalign.running.planning import plan_phases

    plan_phases(_load(pipeline, folder, components), _registry(components))


def train(
    pipeline: Tree,
    folder: Path,
    components: Components,
    *,
    root: Path,
    name: str,
    budget: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Path, str | None]:
    """Run a pipeline whose paths begin in `folder`: the run's folder, and if it broke off, why.

    It broke off if what it computed was no longer finite; whatever else goes wrong is raised. It ends after the
    iteration that has used up its `budget`: `tokens` of responses, or `seconds` of processor time.
    """
    from rlalign import Interrupted, api

    used = dict.fromkeys(budget, 0.0)
    began = time.process_time()

    def count(row: Tree) -> None:
        used.update(tokens=used.get("tokens", 0) + row["tokens"], seconds=time.process_time() - began)
        if any(used[what] >= most for what, most in budget.items()):
            signal.raise_signal(signal.SIGTERM)  # as whoever wants a run to end after its iteration does

    ready = api.Pipeline(_load(pipeline, folder, components), _registry(components))
    try:
        api.run(ready, root=root, name=name, display=False, callbacks=api.Callbacks(on_iteration=count))
    except Interrupted:
        if not any(used[what] >= most for what, most in budget.items()):
            raise
    except ComponentError as error:
        if "not finite" not in str(error):
            raise
        return root / name, str(error).replace(str(root / name), name)
    return root / name, None


def metrics(run: Path) -> list[Tree]:
    """The lines of a run's metrics.jsonl."""
    from rlalign.records import logs

    return list(logs.read(run / "metrics.jsonl"))


def lock(run: Path) -> Tree:
    """What a run was made with."""
    found: Tree = json.loads((run / "lock.json").read_text())
    return found


def signatures(run: Path) -> dict[str, str]:
    """What the figures of a run's scores depend on, where their components say so, by their names."""
    from rlalign.records.result import Result

    return Result(run).signatures


def evaluated(run: Path, how: Tree, components: Components) -> Tree:
    """A finished run's policy measured once more; `how` changes its `evaluate` section, key by key."""
    return _opened(run, how, components).evaluate()  # type: ignore[no-any-return]


def evaluated_by_example(
    run: Path, how: Tree, components: Components
) -> tuple[Tree, dict[str, list[float]], str]:
    """The same, with one value an example by the same names, where that is what a figure is a mean of.

    The last is a hash of the examples.
    """
    return _opened(run, how, components).evaluate_by_example()  # type: ignore[no-any-return]


def sampled(run: Path, how: Tree, components: Components) -> list[Tree]:
    """The same, as responses with their rewards: rows of logged data."""
    return _opened(run, how, components).rows()  # type: ignore[no-any-return]


def steps_of_checkpoints(run: Path) -> dict[int, int]:
    """By optimiser step, counted over the whole run, the checkpoints that are still there."""
    from rlalign.records import checkpoint

    there = run / "checkpoints"
    return {int(checkpoint.read(there, i).loop["phase"]["step"]): i for i in checkpoint.find(there)}


def go_back(run: Path, index: int) -> None:
    """Make this checkpoint the last: later ones are deleted."""
    from rlalign.records import checkpoint

    checkpoint.settle(run / "checkpoints", index)


def model_samples(model: Path, task: Tree, how: Tree, *, seed: int) -> list[Tree]:
    """Responses of a model to a task's examples: rows of logged data."""
    import rlalign

    return rlalign.open(model, _of_evaluation(how), task=task, seed=seed).rows()


def warm() -> None:
    """Import what every run needs, and look up what is installed: once, before runs are forked."""
    for module in ("tensorboardX", "torch._dynamo", "rlalign.running.loop", "rlalign.running.opening"):
        import_module(module)  # torch's optimisers import torch._dynamo when they are made
    assert _known(()).installed


def _registry(components: Components) -> Any:
    return _known(tuple(components.items()))


@cache
def _known(components: tuple[tuple[str, type[Any]], ...]) -> Any:
    """One registry for a process: what is installed is read once."""
    from rlalign.config.registry import Registry

    return Registry(dict(components), trust=True)


def _load(pipeline: Tree, folder: Path, components: Components) -> Any:
    from rlalign.config.load import load_pipeline

    text = json.dumps(pipeline)
    return load_pipeline(folder / "pipeline.yaml", registry=_registry(components), text=text)


def _opened(run: Path, how: Tree, components: Components) -> Any:
    import rlalign

    return rlalign.open(run, _of_evaluation(how), components=components, trust=True)


def _of_evaluation(how: Tree) -> Tree:
    return {f"evaluate.{key}": value for key, value in how.items()}
