"""A pipeline file while it is read: its sections, and the items that name its components."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from rlalign.config.pipeline import ALTERNATIVES, ITEM_KEYS, Apart, Item, ItemSettings, short
from rlalign.config.places import Keys, Tree
from rlalign.config.registry import Kind, Registry, kind
from rlalign.config.validate import Report, check
from rlalign.config.words import did_you_mean, found
from rlalign.data import limits
from rlalign.data.settings import Options
from rlalign.errors import ConfigError, RLAlignError, concealed, describe_error
from rlalign.interface.component import Component
from rlalign.interface.hooks import WATCHING

M = TypeVar("M", bound=BaseModel)

_ACCEPTED: Mapping[str, tuple[tuple[Kind, ...], tuple[str, ...], str]] = {
    "policy": (("policy",), (), "a policy"),
    "task": (("task",), (), "a task"),
    "responses": (("component",), ("rollout",), "a component with a `rollout` hook"),
    "rewards": (("component",), ("reward",), "components with a `reward` hook"),
    "algorithm": (("component",), (), "components with hooks"),
    "observers": (("component",), WATCHING, f"components with one of the hooks {', '.join(WATCHING)}"),
    "evaluate.use": (("component",), ("reward", "evaluate"), "components that score or measure responses"),
    "models": (("value", "policy", "sampler"), (), "a value, a policy or a sampler"),
}
"""What each part of the file accepts: the kinds, the hooks of which it needs one, both in words."""


class File:
    """What a pipeline file says, part by part; what is wrong with a part is reported when it is asked for.

    `unread` imports no component: that there is one of each name is all that is known of them then.
    """

    def __init__(self, tree: Tree, folder: Path, registry: Registry, *, unread: bool = False) -> None:
        self.unread = unread
        self.tree = tree
        self.folder = folder
        self.registry = registry
        self._items: dict[Keys, Item | None] = {}

    def report(self, keys: Keys, text: str) -> None:
        if text.endswith("(text)") and "${oc.env:" in self.tree.interpolated.get(keys, ""):
            text += "; `${oc.env:…}` is always text: write `${oc.decode:${oc.env:…}}`"
        said = next((self.tree.interpolated[at] for at in self.tree.private if at == keys[: len(at)]), None)
        if said is not None:  # however short, it is not shown
            with suppress(LookupError, TypeError):
                value = self.tree.at(keys)
                for shown in (
                    (repr(value), concealed(repr(value))) if isinstance(value, str) else (found(value),)
                ):
                    text = text.replace(shown, repr(said))
        self.tree.report(keys, text)

    def under(self, keys: Keys) -> Report:
        """Reports what `check` finds below `keys`."""
        return lambda loc, text: self.report((*keys, *loc), text)

    def find(self, scope: Keys, key: str) -> Keys | None:
        """Where a phase's `key` is written: in the phase, else at the top; null counts as nowhere."""
        for keys in (scope, ()):
            holder = self.tree.at(keys)
            if key in holder:
                return None if holder[key] is None else (*keys, key)
        return None

    # -- sections -------------------------------------------------------------------------------------

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
                other = ALTERNATIVES.get(name, "")
                if section == "train" and own[name] is not None and other not in own:
                    merged.pop(other, None)
        return merged

    def section(
        self, scope: Keys, section: str, model: type[M], defaults: Mapping[str, Any] = {}
    ) -> M | None:
        """A phase's merged section, over these defaults, as a model; None after reporting what is wrong.

        Items are left out: their components are yet to be found.
        """
        merged = self.merge(scope, section)
        merged.pop("use", None)

        def wrong(loc: Keys, text: str) -> None:
            inherited = merged.get(str(loc[0])) if loc else None
            keys = (*inherited, *loc[1:]) if inherited else (*scope, section, *loc)
            self.report(keys, text)

        data = {**defaults, **{name: self.tree.at(keys) for name, keys in merged.items()}}
        return check(model, data, self.folder, wrong)

    # -- items ----------------------------------------------------------------------------------------

    def items(self, keys: Keys | None, role: str) -> list[Item]:
        """The sound items of a list, or the one that stands in its place."""
        return [item for one in self.each(keys) if (item := self.item(one, role)) is not None]

    def each(self, keys: Keys | None) -> list[Keys]:
        """Where each item of a list is written, or the one that stands in its place."""
        listed = None if keys is None else self.tree.at(keys)
        if keys is None or not isinstance(listed, list):
            return [] if keys is None else [keys]
        if len(listed) > limits.ITEMS:
            self.report(keys, f"holds {len(listed):,} components, more than {limits.ITEMS:,}")
            return []
        return [(*keys, index) for index in range(len(listed))]

    def item(self, keys: Keys, role: str) -> Item | None:
        """The item at `keys`, always the same object; None after reporting what is wrong."""
        if keys not in self._items:
            self._items[keys] = self.make(keys, role, self.tree.at(keys))
        return self._items[keys]

    def where(self, item: Item) -> Keys | None:
        return next((keys for keys, known in self._items.items() if known is item), None)

    def make(self, keys: Keys, role: str, said: Any) -> Item | None:
        """The item that the file says, its component's options checked."""
        if isinstance(said, str):
            said = {said: None}
        if not isinstance(said, dict):
            self.report(keys, f"expected a component, `name` or `name: {{…}}`, found {found(said)}")
            return None
        components = [key for key in said if key not in ITEM_KEYS]
        if len(components) != 1:
            self.report(keys, _not_one(components))
            return None
        component = components[0]
        apart = None
        if role == "task" and (limited := said.get("isolate")) not in (None, False):
            apart = check(
                Apart, {} if limited is True else limited, self.folder, self.under((*keys, "isolate"))
            )
            if apart is None:
                return None
        settings = self._settings(keys, role, said)
        cls = self._class((*keys, component), role, component)
        options = self._options((*keys, component), cls, said[component]) if cls else None
        if cls is None or settings is None or options is None:
            return None
        item = Item(
            **{key: value for key, value in settings if key != "name"},
            name=settings.name or short(component),
            component=component,
            options=options,
            cls=cls,
            place=self.tree.place(keys),
            apart=apart,
            private=self._private((*keys, component)),
        )
        return item if role == "models" or self._accepts(keys, item) else None

    def _settings(self, keys: Keys, role: str, said: dict[str, Any]) -> ItemSettings | None:
        settings = {key: said[key] for key in ITEM_KEYS if said.get(key) is not None}
        for key in ("weight", "source"):
            if key in settings and role not in ("rewards", "algorithm"):
                self.report((*keys, key), "only items of `rewards` and `algorithm` have one")
        if role == "task":
            settings.pop("isolate", None)
        elif "isolate" in settings and role not in ("rewards", "evaluate.use"):
            self.report((*keys, "isolate"), "only tasks and items of `rewards` and `evaluate.use` have one")
        return check(ItemSettings, settings, self.folder, self.under(keys))

    def _class(self, keys: Keys, role: str, component: str) -> type[Any] | None:
        try:
            if self.unread:
                self.registry.require(component, self.folder)
                return Component
            cls = self.registry.load(component, self.folder).cls
        except ConfigError as error:
            self.report(keys, str(error))
            return None
        if accepts(cls, role):
            return cls
        kinds, _, words = _ACCEPTED[role]
        if role == "rewards" and kind(cls) in kinds and hasattr(cls, "evaluate"):
            self.report(
                keys,
                f"`{component}` measures a whole set of responses and has no score of a single one, so nothing can be "
                "learned from it; it belongs under `evaluate.use` (`rewards` takes components with a `reward` hook)",
            )
            return None
        lacks = " without one" if kind(cls) in kinds else ""
        self.report(keys, f"`{role}` takes {words}; `{component}` is a {kind(cls)}{lacks}")
        return None

    def _options(self, keys: Keys, cls: type[Any], options: Any) -> BaseModel | None:
        if options is not None and not isinstance(options, dict):
            self.report(keys, f"expected a mapping of options, found {found(options)}")
            return None
        if self.unread:
            return Options()
        config: type[BaseModel] = cls.Config
        return check(config, options or {}, self.folder, self.under(keys), trust=self.registry.trust)

    def _private(self, keys: Keys) -> dict[Keys, str]:
        """What the environment went into, by its path below `keys`; where all of it did, that once."""
        said = self.tree.interpolated
        for depth in range(len(keys) + 1):
            if keys[:depth] in self.tree.private:
                return {(): ".".join([said[keys[:depth]], *map(str, keys[depth:])])}
        return {at[len(keys) :]: said[at] for at in self.tree.private if at[: len(keys)] == keys}

    def _accepts(self, keys: Keys, item: Item) -> bool:
        """Whether the component itself accepts its options."""
        try:
            item.peek()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too
            said = error if isinstance(error, RLAlignError | ValueError) else describe_error(error)
            self.report(keys, f"`{item.name}` refuses its options: {said}")
            return False
        return True


def accepts(cls: type[Any], role: str) -> bool:
    """Whether a component of this class may stand in this part of a file."""
    kinds, hooks, _ = _ACCEPTED[role]
    return kind(cls) in kinds and (not hooks or any(hasattr(cls, hook) for hook in hooks))


def _not_one(components: list[str]) -> str:
    if not components:
        return "names no component"
    names = " and ".join(f"`{name}`" for name in components)
    beside = ", ".join(f"`{key}`" for key in ITEM_KEYS)
    hint = next(filter(None, (did_you_mean(name, ITEM_KEYS) for name in components)), "")
    return (
        f"one item names one component, found {names}; options go under the component's name, "
        f"beside it only {beside}{hint}"
    )
