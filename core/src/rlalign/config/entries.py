"""Reads the parts of a pipeline file: sections that merge, and entries that name a component."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from rlalign.config.overrides import META, RIVALS, short
from rlalign.config.pipeline import Item
from rlalign.config.places import Keys, Tree, dotted, found
from rlalign.config.registry import Kind, Registry, kind
from rlalign.config.validate import Report, check
from rlalign.data.settings import Options
from rlalign.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

SAFE = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""What a name may be: it becomes part of a file name, of a metric's and of a command line."""

_TAKES: Mapping[str, tuple[tuple[Kind, ...], tuple[str, ...], str]] = {
    "policy": (("policy",), (), "a policy"),
    "task": (("task",), (), "a task"),
    "responses": (("component",), ("rollout",), "a component with a `rollout` hook"),
    "rewards": (("component",), ("reward",), "components with a `reward` hook"),
    "algorithm": (("component",), (), "components with hooks"),
    "use": (("component",), ("reward", "evaluate"), "components that score or measure responses"),
    "models": (("value", "policy"), (), "a value or a policy"),
}
"""What each place of the file takes: the kinds, the hooks of which it needs one, both in words."""


class Beside(Options):
    """What an entry says beside its component's options."""

    weight: float = Field(1.0, description="factor of the reward or of the loss")
    name: str | None = Field(None, alias="as", pattern=SAFE, description="the entry's name")
    source: str | None = Field(None, description="only responses from this source")


class File:
    """A pipeline file while it is checked: what it says, where, and what is wrong with it."""

    def __init__(self, tree: Tree, folder: Path, registry: Registry) -> None:
        self.tree = tree
        self.folder = folder
        self.registry = registry
        self.problems: list[str] = []
        self._items: dict[Keys, Item | None] = {}

    def report(self, keys: Keys, text: str) -> None:
        if text.endswith("(text)") and "${oc.env:" in self.tree.interpolated.get(keys, ""):
            text += "; `${oc.env:…}` is always text: write `${oc.decode:${oc.env:…}}`"
        parts = (self.tree.place(keys), dotted(keys), text)
        self.problems.append(": ".join(part for part in parts if part))

    def find(self, scope: Keys, key: str) -> Keys | None:
        """Where a phase's `key` is written: in the phase, else at the top; null counts as nowhere."""
        for keys in (scope, ()):
            holder = self.tree.at(keys)
            if key in holder:
                return None if holder[key] is None else (*keys, key)
        return None

    def merge(self, scope: Keys, section: str) -> dict[str, Keys]:
        """A section that phases inherit key by key: where each of its keys is written."""
        merged: dict[str, Keys] = {}
        for keys in dict.fromkeys([(), scope]):
            holder = self.tree.at(keys)
            own = holder.get(section)
            if section in holder and own is None:
                merged = {}
            elif own is not None and not isinstance(own, dict):
                self.report((*keys, section), f"expected a mapping, found {found(own)}")
            for name in own if isinstance(own, dict) else ():
                merged[name] = (*keys, section, name)
                # A phase that counts `passes` does not inherit `iterations`.
                rival = RIVALS.get(name, "")
                if section == "train" and own[name] is not None and rival not in own:
                    merged.pop(rival, None)
        return merged

    def section(
        self, scope: Keys, section: str, model: type[M], defaults: Mapping[str, Any] = {}
    ) -> M | None:
        """A phase's merged section, over these defaults, as a model; None after reporting what is wrong."""
        merged = self.merge(scope, section)

        def wrong(loc: Keys, text: str) -> None:
            inherited = merged.get(str(loc[0])) if loc else None
            keys = (*inherited, *loc[1:]) if inherited else (*scope, section, *loc)
            self.report(keys, text)

        data = {**defaults, **{name: self.tree.at(keys) for name, keys in merged.items()}}
        return check(model, data, self.folder, wrong)

    def items(self, keys: Keys | None, role: str) -> list[Item]:
        """The sound entries of a list, or the one that stands in its place."""
        if keys is None:
            return []
        entries = self.tree.at(keys)
        each = [(*keys, index) for index in range(len(entries))] if isinstance(entries, list) else [keys]
        return [item for one in each if (item := self.item(one, role)) is not None]

    def item(self, keys: Keys, role: str) -> Item | None:
        """The entry at `keys`, always the same object; None after reporting what is wrong."""
        if keys not in self._items:
            self._items[keys] = self.make(keys, role, self.tree.at(keys))
        return self._items[keys]

    def where(self, item: Item) -> Keys:
        return next((keys for keys, known in self._items.items() if known is item), ())

    def make(self, keys: Keys, role: str, entry: Any) -> Item | None:
        """The component that `entry` names, its options checked."""
        if isinstance(entry, str):
            entry = {entry: None}
        if not isinstance(entry, dict):
            self.report(keys, f"expected a component, `name` or `name: {{…}}`, found {found(entry)}")
            return None
        components = [key for key in entry if key not in META]
        if len(components) != 1:
            self.report(keys, _not_one(components))
            return None
        component = components[0]
        beside = self._beside(keys, role, entry)
        try:
            cls = self.registry.load(component, self.folder).cls
        except ConfigError as error:
            self.report((*keys, component), str(error))
            return None
        kinds, hooks, words = _TAKES[role]
        if kind(cls) not in kinds or (hooks and not any(hasattr(cls, hook) for hook in hooks)):
            lacks = " without one" if kind(cls) in kinds else ""
            self.report(
                (*keys, component),
                f"`{'evaluate.use' if role == 'use' else role}` takes {words}; "
                f"`{component}` is a {kind(cls)}{lacks}",
            )
            return None
        options = self._options((*keys, component), cls.Config, entry[component])
        if beside is None or options is None:
            return None
        return Item(
            name=beside.name or short(component),
            component=component,
            options=options,
            cls=cls,
            weight=beside.weight,
            source=beside.source,
            place=self.tree.place(keys),
        )

    def under(self, keys: Keys) -> Report:
        """Reports what `check` finds below `keys`."""
        return lambda loc, text: self.report((*keys, *loc), text)

    def _options(self, keys: Keys, model: type[BaseModel], options: Any) -> BaseModel | None:
        if options is not None and not isinstance(options, dict):
            self.report(keys, f"expected a mapping of options, found {found(options)}")
            return None
        return check(model, options or {}, self.folder, self.under(keys))

    def _beside(self, keys: Keys, role: str, entry: dict[str, Any]) -> Beside | None:
        said = {key: entry[key] for key in META if entry.get(key) is not None}
        for key in ("weight", "source"):
            if key in said and role not in ("rewards", "algorithm"):
                self.report((*keys, key), "only entries of `rewards` and `algorithm` have one")
        return check(Beside, said, self.folder, self.under(keys))


def _not_one(components: list[str]) -> str:
    if not components:
        return "names no component"
    names = " and ".join(f"`{name}`" for name in components)
    beside = ", ".join(f"`{key}`" for key in META)
    text = f"one entry names one component, found {names}; options go under the component's name, "
    text += f"beside it only {beside}"
    close = [match for name in components for match in get_close_matches(name, META, 1)]
    return f"{text}; did you mean `{close[0]}`?" if close else text
