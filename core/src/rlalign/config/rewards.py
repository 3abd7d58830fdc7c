"""The rewards and metrics of a file, without the rest of a pipeline: what `rlalign serve-reward` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlalign.config import places
from rlalign.config.file import File
from rlalign.config.load import error_of, pipeline_text
from rlalign.config.overrides import interpolate
from rlalign.config.pipeline import Item
from rlalign.config.places import Keys
from rlalign.config.registry import Registry
from rlalign.config.validate import absolute
from rlalign.config.words import found
from rlalign.errors import ConfigError


@dataclass(frozen=True)
class RewardsFile:
    """The items under `rewards` and `evaluate.use`, by name, and where their own code is looked for."""

    items: dict[str, Item]
    folder: Path
    seed: int


def load_rewards(path: Path | str, registry: Registry) -> RewardsFile:
    """Those of a whole pipeline, or of a file that holds only `rewards`. One ConfigError lists all that is wrong."""
    path = Path(path)
    tree = places.read(pipeline_text(path), str(path))
    interpolate(tree, trust=registry.trust)
    places.Size().add_all(str(path), tree.data)
    folder, said = path.absolute().parent, tree.data.get("folder")
    file = File(tree, absolute(said, folder) if isinstance(said, str) else folder, registry)
    phases = tree.data.get("phases")
    scopes: list[Keys] = [()]
    for index, phase in enumerate(phases if isinstance(phases, list) else ()):
        if isinstance(phase, dict):
            scopes.append(("phases", index))
        else:
            file.report(("phases", index), f"expected a mapping, found {found(phase)}")
    items: dict[str, Item] = {}
    for scope in scopes:
        for item in _of(file, scope, items):
            if (other := items.setdefault(item.name, item)) and _differs(other, item):
                file.report(
                    scope,
                    f"two rewards are called `{item.name}`, and are served by name; name one otherwise, `as: …`",
                )
    if tree.problems:
        raise error_of(tree.problems)
    if not items:
        raise ConfigError(f"{path}: holds no `rewards`: a list of components, as in a pipeline")
    seed = tree.data.get("seed")
    return RewardsFile(items, file.folder, seed if type(seed) is int and seed >= 0 else 0)


def _of(file: File, scope: Keys, known: Mapping[str, Item]) -> list[Item]:
    """What a phase, or the top of the file, lists."""
    holder, found = file.tree.at(scope), []
    if holder.get("rewards") is not None:
        found += file.items((*scope, "rewards"), "rewards")
    evaluate = holder.get("evaluate")
    if isinstance(evaluate, dict) and evaluate.get("use") is not None:
        named = [*known, *(item.name for item in found)]  # what an evaluation uses of the rewards
        for keys in file.each((*scope, "evaluate", "use")):
            if file.tree.at(keys) not in named and (item := file.item(keys, "evaluate.use")):
                found.append(item)
    return found


def _differs(one: Item, other: Item) -> bool:
    return (one.component, one.identity) != (other.component, other.identity)
