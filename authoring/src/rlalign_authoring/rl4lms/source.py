"""A file of RL4LMs: its values with their lines, and the keys that nobody asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from rlalign.config import places
from rlalign.config.load import error_of
from rlalign.config.places import Keys
from rlalign.config.words import found, unknown
from rlalign.errors import ConfigError
from rlalign_authoring import layout

T = TypeVar("T")
KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list",
}


class Source:
    """The file, read part by part. A key that no part was asked for is one that RL4LMs does not have."""

    def __init__(self, text: str, name: str) -> None:
        if not text.strip():
            raise ConfigError(f"{name}: the file is empty; a file of RL4LMs has tokenizer, datapool, alg, …")
        self.tree = places.read(text, name)
        self.swept = _first_of_sweeps(self.tree)
        self.parts: dict[Keys, Part] = {}
        self.top = self.part((), self.tree.data)

    def part(self, keys: Keys, data: Mapping[str, Any]) -> Part:
        """One for each place, whoever asks."""
        return self.parts.setdefault(keys, Part(self, keys, data))

    def refuse_what_is_wrong(self) -> None:
        """One error for all wrong values and unknown keys."""
        for part in self.parts.values():
            for key in part.data:
                if key not in part.asked:
                    self.tree.report((*part.keys, key), unknown("key", key, part.asked))
        if self.tree.problems:
            raise error_of(self.tree.problems)


class Part:
    """A mapping of the file."""

    def __init__(self, source: Source, keys: Keys, data: Mapping[str, Any]) -> None:
        self.source, self.keys, self.data = source, keys, data
        self.asked: dict[str, None] = {}

    def has(self, key: str) -> bool:
        return self.data.get(key) is not None

    def take(self, key: str, kind: type[T], default: T) -> T:
        """A value; `default` where it is not said, or null."""
        self.asked[key] = None
        value = self.data.get(key)
        if value is None:
            return default
        fits = isinstance(value, (int, float) if kind is float else kind)
        if kind is float and fits:
            fits = math.isfinite(value)
        if not fits or (isinstance(value, bool) and kind is not bool):
            self.wrong(key, f"expected {KINDS[kind]}, found {found(value)}")
            return default
        return kind(value) if kind is float else value  # type: ignore[call-arg]

    def need(self, key: str, what: str) -> str:
        """A text without which nothing can be written."""
        if not self.has(key):
            self.asked[key] = None
            self.wrong(key, f"is missing: {what}")
        return self.take(key, str, "")

    def part(self, key: str) -> Part:
        """A mapping within this one; empty where it is not said."""
        return self.source.part((*self.keys, key), self.take(key, dict, {}))

    def each(self, key: str) -> list[Part]:
        """The mappings of a list."""
        listed = self.take(key, list, [])
        for index, one in enumerate(listed):
            if not isinstance(one, dict):
                self.wrong(f"{key}[{index}]", f"expected {KINDS[dict]}, found {found(one)}")
        return [
            self.source.part((*self.keys, key, i), one)
            for i, one in enumerate(listed)
            if isinstance(one, dict)
        ]

    def rest(self) -> dict[str, Any]:
        """All that was not asked for yet."""
        left = {key: value for key, value in self.data.items() if key not in self.asked}
        self.asked |= dict.fromkeys(left)
        return left

    def wrong(self, key: str, text: str) -> None:
        self.source.tree.report((*self.keys, key), text)

    def line(self, key: str) -> str:
        """Where it is said: `line 30`."""
        return f"line {self.source.tree.place((*self.keys, key)).rpartition(':')[2]}"

    def said(self, key: str) -> str:
        """How it is said, and where: "`top_k: 50` (line 30)"."""
        return f"`{key}: {layout.flow(self.data[key])}` ({self.line(key)})"


def _first_of_sweeps(tree: places.Tree) -> list[tuple[str, str, list[Any]]]:
    """Replace each `expand: true, values: […]` by its first value: (line, key, the other values)."""
    swept: list[tuple[str, str, list[Any]]] = []

    def walk(node: Any, keys: Keys) -> Any:
        if isinstance(node, dict) and node.get("expand") is True and isinstance(node.get("values"), list):
            first, *others = node["values"] or [None]
            swept.append((tree.place(keys).rpartition(":")[2], places.dotted(keys), others))
            moved = {
                (*keys, *k[len(keys) + 2 :]): place
                for k, place in tree.places.items()
                if k[: len(keys) + 2] == (*keys, "values", 0)
            }
            tree.places |= moved
            return walk(first, keys)
        if isinstance(node, dict):
            return {key: walk(part, (*keys, key)) for key, part in node.items()}
        if isinstance(node, list):
            return [walk(part, (*keys, index)) for index, part in enumerate(node)]
        return node

    tree.data = walk(tree.data, ())
    return swept
