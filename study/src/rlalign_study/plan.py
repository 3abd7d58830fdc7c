"""What is run: worlds × arms × settings × seeds, each run one pipeline. Nothing here reads a result."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from rlalign_study.core import ConfigError
from rlalign_study.file import Axis, Overrides, Study, seeds

PREPARE, TUNING, MAIN, ABLATION = STAGES = ("prepare", "tuning", "main", "ablation")


@dataclass(frozen=True)
class Setting:
    """One point of an arm's grid."""

    label: str
    cells: Mapping[str, str]
    """By axis: what the table of chosen settings shows."""
    set: Overrides


@dataclass(frozen=True)
class Planned:
    """One run, or (stage `prepare`) what the runs of a world and seed begin with."""

    stage: str
    world: str
    arm: str
    setting: str
    seed: int
    overrides: Overrides
    """What differs from the study's pipeline."""
    pipeline: dict[str, Any]
    final: Mapping[str, Overrides]
    given: Mapping[str, Any]
    budget: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, Any] = field(default_factory=dict)
    """The metrics, where a measurement keeps its values by example."""

    @property
    def key(self) -> str:
        """What the run is. Its results are kept under this name."""
        parts = (self.stage, self.world, self.arm, self.setting.replace("/", "-"), str(self.seed))
        return "/".join(part for part in parts if part)

    @property
    def hash(self) -> str:
        """Changes with anything that would make the run another one."""
        what = [self.pipeline, self.final, self.given]
        if self.budget or self.names:
            what += [self.budget, self.names]
        said = json.dumps(what, sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def settings(study: Study, world: str, arm: str) -> list[Setting]:
    """All points of an arm's grid in a world: axes of the study, of the world, of the arm."""
    axes = study.grid | study.worlds[world].grid | study.arms[arm].grid
    points = product(*(_points(title, axis, f"arms.{arm}") for title, axis in axes.items()))
    return [
        Setting(
            ", ".join(part for _, part, _, _ in point),
            {title: cell for title, _, cell, _ in point},
            {key: value for _, _, _, some in point for key, value in some.items()},
        )
        for point in points
    ]


def _points(title: str, axis: Axis, where: str) -> list[tuple[str, str, str, Overrides]]:
    """Title, part of the label, cell of the table and overrides of each point of an axis."""
    if len(axis) == 1 and isinstance(values := next(iter(axis.values())), list):
        (key,) = axis
        some: dict[str, Overrides] = {_short(value): {key: value} for value in values}
    elif axis and all(isinstance(choice, dict) for choice in axis.values()):
        some = axis
    else:
        raise ConfigError(
            f"{where}: grid.{title}: expected one key with a list of values (`train.lr: [1e-4, 1e-3]`), "
            "or for each name a mapping of overrides"
        )
    return [(title, name if "=" in name else f"{title}={name}", name, said) for name, said in some.items()]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def tuning(study: Study, world: str) -> list[Planned]:
    """Every setting of every arm on the tuning seeds; all arms try the same number of settings.

    Nothing where there is nothing to choose.
    """
    tried = {arm: settings(study, world, arm) for arm in study.arms_of(world)}
    counts = {arm: len(some) for arm, some in tried.items()}
    if len(set(counts.values())) > 1:
        usual = Counter(counts.values()).most_common(1)[0][0]
        odd = ", ".join(f"`{arm}` tries {n}" for arm, n in counts.items() if n != usual)
        raise ConfigError(
            f"{study.path}: worlds.{world}: {odd} settings and the other arms {usual}; "
            "give every arm a grid of the same size, or the comparison is not fair"
        )
    for arm, some in tried.items():
        if len({one.label for one in some}) < len(some):
            raise ConfigError(f"{study.path}: arms.{arm}: two settings of the grid have one name")
    if set(counts.values()) == {1}:
        return []
    if study.tuning is None:
        raise ConfigError(f"{study.path}: there is a grid, and no `tuning` that says how to choose from it")
    if shared := set(seeds(study.tuning.seeds)) & {s for arm in tried for s in study.seeds_of(world, arm)}:
        raise ConfigError(
            f"{study.path}: tuning.seeds: {min(shared)} is a reported seed too; choose settings on other seeds"
        )
    return [
        _planned(study, TUNING, world, arm, one, one.label, {}, seed)
        for arm, some in tried.items()
        for one in some
        for seed in seeds(study.tuning.seeds)
    ]


def main(study: Study, world: str, chosen: Mapping[str, Setting]) -> list[Planned]:
    """The reported runs of the arms whose setting is chosen."""
    return [
        _planned(study, MAIN, world, arm, chosen[arm], "", {}, seed)
        for arm in study.arms_of(world)
        if arm in chosen
        for seed in study.seeds_of(world, arm)
    ]


def ablation(study: Study, world: str, chosen: Mapping[str, Setting]) -> list[Planned]:
    """Runs that differ from a main run of the same seed in one thing."""
    about = study.ablations
    if about is None or world not in about.worlds:
        return []
    return [
        _planned(study, ABLATION, world, arm, chosen[arm], ablated(group, name), changed, seed)
        for group, arms in about.groups.items()
        for arm, varied in arms.items()
        if arm in chosen
        for name, changed in varied.items()
        if changed  # without a change it is a main run
        for seed in seeds(about.seeds)
    ]


def ablated(group: str, name: str) -> str:
    """What an ablation's setting is called."""
    return f"{group}={name}"


def prepared(study: Study, runs: list[Planned]) -> list[Planned]:
    """What has to be there before these runs: one for each world and seed, if the study prepares anything."""
    if study.hooks.prepare is None:
        return []
    wanted = dict.fromkeys((one.world, one.seed) for one in runs)
    return [
        Planned(PREPARE, world, "", "", seed, {}, {}, {}, study.given_of(world)) for world, seed in wanted
    ]


def _planned(
    study: Study, stage: str, world: str, arm: str, at: Setting, label: str, changed: Overrides, seed: int
) -> Planned:
    here = study.worlds[world]
    layers = {
        f"worlds.{world}.set": here.set,
        f"arms.{arm}.set": study.arms[arm].set,
        f"worlds.{world}.arms.{arm}": here.arms.get(arm, {}),
        f"arms.{arm}.grid": at.set,
        f"ablations.{label}": changed,
        "": {"seed": seed},
    }
    pipeline = deepcopy(study.pipeline)
    for where, layer in layers.items():
        for key, value in layer.items():
            try:
                put(pipeline, key, deepcopy(value))
            except LookupError as error:
                raise ConfigError(f"{study.path}: {where}: {key}: {error.args[0]}") from None
    evaluate = study.tuning.evaluate if stage == TUNING and study.tuning else study.evaluate
    final = {
        name: one.evaluate | evaluate for name, one in study.final.items() if one.tuning or stage != TUNING
    }
    overrides = {key: value for layer in layers.values() for key, value in layer.items()}
    filled = fill(pipeline, world=world, seed=seed)
    given = study.given_of(world) if study.hooks.prepare else {}
    names = study.metrics_of(world) if any(study.final[name].each for name in final) else {}
    budget = study.budget_of(world)
    return Planned(stage, world, arm, label, seed, overrides, filled, final, given, budget, names)


def put(tree: Any, key: str, value: Any) -> None:
    """Set what a dotted key names, as `key=value` does on rlalign's command line.

    Entries of a list go by index, by `name`, or by their component; `kl` becomes `{kl: {}}` to hold an option.
    """
    head, _, rest = key.partition(".")
    at: Any = head
    if isinstance(tree, list):
        named = [i for i, one in enumerate(tree) if head == str(i) or _answers(one, head)]
        if len(named) != 1:
            raise LookupError(f"there {'is no' if not named else 'is more than one'} `{head}` in this list")
        (at,) = named
        if rest and isinstance(tree[at], str):
            tree[at] = {head: {}}
        if rest and isinstance(tree[at], dict) and head in tree[at]:
            tree, at = tree[at], head
    elif not isinstance(tree, dict):
        raise LookupError(f"`{head}` leads nowhere: {tree!r} is no mapping")
    if not rest:
        tree[at] = value
        return
    if isinstance(tree, dict) and tree.get(at) is None:
        tree[at] = {}
    put(tree[at], rest, value)


def _answers(entry: Any, name: str) -> bool:
    if isinstance(entry, dict):
        return name in entry or entry.get("name") == name or entry.get("as") == name
    return bool(entry == name)


def fill(node: Any, **values: Any) -> Any:
    """The tree with `{world}`, `{seed}`, `{work}` in its texts replaced by what is given for them."""
    if isinstance(node, dict):
        return {key: fill(part, **values) for key, part in node.items()}
    if isinstance(node, list):
        return [fill(part, **values) for part in node]
    if isinstance(node, str):
        for name, value in values.items():
            node = node.replace(f"{{{name}}}", str(value))
    return node
