"""What a pipeline says, as dotted paths and values, with every default that files tell. Imports no component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlalign.config import places
from rlalign.config.file import File
from rlalign.config.inherit import is_origin
from rlalign.config.outline import Declared, declared
from rlalign.config.pipeline import (
    ITEM_KEYS,
    Evaluate,
    ItemSettings,
    PipelineSettings,
    short,
    without_observers,
)
from rlalign.config.places import Keys
from rlalign.config.registry import Registry, installed
from rlalign.data.settings import Sampling, Train

LISTS = ("rewards", "algorithm")
NO_NUMBER = ("checkpoints", "evaluate.show", "train.keep_responses")
"""Sections and options that change no number of a run."""


@dataclass(frozen=True)
class Setting:
    value: Any
    default: bool = False


Settings = Mapping[str, Setting]
"""By path, as `rlalign run FILE PATH=VALUE` takes it."""


def of_file(path: Path) -> dict[str, Any]:
    """The data of a pipeline file, with its `${…}` resolved, all but those that read the environment."""
    from rlalign.config.load import error_of, pipeline_text
    from rlalign.config.overrides import interpolate

    tree = places.read(pipeline_text(path), str(path))
    interpolate(tree)
    if tree.problems:
        raise error_of(tree.problems)
    said: dict[str, Any] = without_observers(tree.written())
    return said


def phases(said: Mapping[str, Any]) -> int:
    """How many a pipeline has."""
    listed = said.get("phases")
    return len(listed) if isinstance(listed, list) else 1


def settings(said: Mapping[str, Any], *, by_phase: bool = False) -> Settings:
    """The settings of a pipeline's data. `by_phase`: paths begin with their phase even where there is one only."""
    file = File(places.Tree(dict(said), {(): "pipeline"}), Path(), Registry(), unread=True)
    found: dict[str, Setting] = {}
    for name, field in PipelineSettings.model_fields.items():
        if name != "folder":  # where paths begin: what lies there is told by the digests of data
            _fill(found, name, said.get(name), field.get_default(call_default_factory=True))
    if file.find((), "policy") is not None:
        _item(found, "policy", said["policy"])
    scopes: list[Keys] = [("phases", i) for i in range(phases(said))] if "phases" in said else [()]
    for scope in scopes:
        several = by_phase or len(scopes) > 1
        prefix = ""
        if several:
            found[f"phases.{(name := _phase_name(file, scope))}"] = Setting("there")
            prefix = f"phases.{name}."
        found |= {f"{prefix}{path}": one for path, one in _phase(file, scope).items()}
    return found


def differing(a: Settings, b: Settings) -> dict[str, tuple[Setting | None, Setting | None]]:
    """Paths whose values differ, with both; None where one is not said and its default is not known."""
    found = {}
    for path in {**a, **b}:
        one, other = a.get(path), b.get(path)
        if (one and one.value) == (other and other.value) and (one is None) == (other is None):
            continue
        if _is_order(path):
            if not (one and other and sorted(one.value) == sorted(other.value)):
                continue  # an item more or less, or another one, which has a path of its own
        elif (one is None or one.default) and (other is None or other.default) and _differ_above(path, a, b):
            continue  # defaults of two components, or of something that the other has not
        found[path] = (one, other)
    return found


def is_moot(path: str) -> bool:
    """Whether no number depends on it."""
    inner = without_phase(path)
    parts = inner.split(".")
    return "isolate" in parts or any(f"{inner}.".startswith(f"{one}.") for one in NO_NUMBER)


def without_phase(path: str) -> str:
    """The path within its phase."""
    return path.split(".", 2)[-1] if path.startswith("phases.") else path


# -- one phase -------------------------------------------------------------------------------------------------


def _phase_name(file: File, scope: Keys) -> str:
    said = file.tree.at(scope).get("name") if scope else None
    listed = [file.tree.at(keys) for keys in file.each(file.find(scope, "algorithm"))]
    return str(said or (_named(listed[0]) if listed else ""))


def _phase(file: File, scope: Keys) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    tree = file.tree
    components: list[Declared] = []
    if (keys := file.find(scope, "task")) is not None:
        said = tree.at(keys)
        if is_origin(said):
            _fill(found, "task", said, {})
            keys = file.find((), "task")
        else:
            _item(found, "task", said)
        components += [] if keys is None else [_told(_component(tree.at(keys)))]
    for section in LISTS:
        items = [tree.at(keys) for keys in file.each(file.find(scope, section))]
        _listed(found, section, items)
        components += [_told(_component(item)) for item in items] if section == "algorithm" else []
    if (keys := file.find(scope, "responses")) is not None:
        _item(found, "responses", tree.at(keys))
    else:
        wishes = [one.attributes["responses"] for one in components if one.attributes.get("responses")]
        found["responses"] = Setting(wishes[0] if wishes else "sampled", default=True)
    for section, model in (("train", Train), ("generation", Sampling)):
        defaults = model().model_dump()
        for one in components:
            defaults |= one.attributes.get("defaults", {}).get(section, {})
        _fill(found, section, _merged(file, scope, section), defaults)
    found |= _evaluate(file, scope)
    for name, keys in file.merge(scope, "models").items():
        said = tree.at(keys)
        if isinstance(said, Mapping) and ("of" in said or "dtype" in said):
            _fill(found, f"models.{name}", said, {})
        elif said is not None:
            _item(found, f"models.{name}", said)
    return found


def _evaluate(file: File, scope: Keys) -> dict[str, Setting]:
    """How a phase evaluates; how it samples then is what the task says unless the file does, so no default is known."""
    found: dict[str, Setting] = {}
    if file.find(scope, "evaluate") is None:
        return {}
    found["evaluate"] = Setting("there")
    said = _merged(file, scope, "evaluate")
    use = said.pop("use", None)
    defaults = {n: f.default for n, f in Evaluate.model_fields.items() if n not in ("use", "generation")}
    _fill(found, "evaluate", said, defaults)
    if use is None:
        items = [file.tree.at(keys) for keys in file.each(file.find(scope, "rewards"))]
        found |= {f"evaluate.use.{_named(one)}": Setting(_component(one), default=True) for one in items}
    else:
        _listed(found, "evaluate.use", use if isinstance(use, list) else [use])
        found.pop("evaluate.use", None)
    return found


def _merged(file: File, scope: Keys, section: str) -> dict[str, Any]:
    return {name: file.tree.at(keys) for name, keys in file.merge(scope, section).items()}


# -- items -----------------------------------------------------------------------------------------------------


def _listed(found: dict[str, Setting], path: str, items: Sequence[Any]) -> None:
    for one in items:
        _item(found, f"{path}.{_named(one)}", one)
    found[path] = Setting([_named(one) for one in items])


def _item(found: dict[str, Setting], path: str, said: Any) -> None:
    component = _component(said)
    found[path] = Setting(component)
    beside = {key: said[key] for key in ITEM_KEYS if key in said} if isinstance(said, Mapping) else {}
    beside.pop("as", None)  # it is in the path
    options = (said.get(component) if isinstance(said, Mapping) else None) or {}
    _fill(found, path, options, _told(component).options)
    if path.startswith(("rewards.", "algorithm.", "evaluate.use.")):
        about = {field.alias or name: field.default for name, field in ItemSettings.model_fields.items()}
        del about["as"]
        _fill(found, path, beside, about)


def _component(said: Any) -> str:
    if isinstance(said, Mapping):
        return str(next((key for key in said if key not in ITEM_KEYS), ""))
    return str(said)


def _named(said: Any) -> str:
    given = said.get("as") if isinstance(said, Mapping) else None
    return str(given or short(_component(said)))


@cache
def _told(component: str) -> Declared:
    """What the component's file says of it; nothing of one that is not installed."""
    return declared(entry_point(component))


@cache
def _entry_points() -> dict[str, str]:
    found = installed()
    return {
        **{one.name: one.value for one in found},
        **{f"{one.distribution}:{one.name}": one.value for one in found},
    }


# -- paths -----------------------------------------------------------------------------------------------------


def _fill(found: dict[str, Setting], path: str, said: Any, default: Any) -> None:
    defaults, values = dict(_leaves(path, default)), dict(_leaves(path, said))
    if said is None:  # as it is where a file leaves it out
        values = {}
    found |= {at: Setting(value, default=True) for at, value in defaults.items()}
    found |= {at: Setting(value, default=defaults.get(at, ...) == value) for at, value in values.items()}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f"{path}.{key}", part)
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _is_order(path: str) -> bool:
    return without_phase(path) in LISTS


def _differ_above(path: str, a: Settings, b: Settings) -> bool:
    """Whether something above the path is there in one only, or is another component."""
    parts = path.split(".")
    return any(a.get(above) != b.get(above) for n in range(1, len(parts)) if (above := ".".join(parts[:n])))


def value_of(said: Settings, path: str) -> Any:
    """The value at a path, of whichever phase says it last."""
    found = [one.value for at, one in said.items() if without_phase(at) == path]
    return found[-1] if found else None


def entry_point(component: str) -> str:
    """Where an installed component's class is; empty of one that is not installed."""
    return _entry_points().get(component, component if ":" in component else "")
