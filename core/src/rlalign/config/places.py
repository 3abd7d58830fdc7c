"""YAML with places: what a file says, and on which line it says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rlalign.config.words import found
from rlalign.data import limits
from rlalign.errors import ConfigError, shortened

LONGEST_PROBLEM = 900
"""Characters in which what is wrong with one value is told; it may quote the value."""
Keys = tuple[str | int, ...]
"""A path in the tree: ("phases", 1, "train", "lr")."""


@dataclass
class Tree:
    """A parsed file: plain data, where each part of it was written, and what is wrong with it."""

    data: dict[str, Any]
    places: dict[Keys, str]
    interpolated: dict[Keys, str] = field(default_factory=dict)
    """What stood where `${…}` has been resolved."""
    private: set[Keys] = field(default_factory=set)
    """Where a variable of the environment went into it: the value is used, and never written down."""
    variables: set[str] = field(default_factory=set)
    """Those variables, without the observers'."""
    problems: list[str] = field(default_factory=list)
    unreadable: set[Keys] = field(default_factory=set)
    """Parts whose value nobody knows: one problem is reported of each, and none that follows from it."""

    def report(self, keys: Keys, text: str, *, place: str = "", unreadable: bool = False) -> None:
        """Note what is wrong at `keys`."""
        if not any(keys[:depth] in self.unreadable for depth in range(len(keys) + 1)):
            parts = (place or self.place(keys), dotted(keys), text)
            self.problems.append(shortened(": ".join(part for part in parts if part), LONGEST_PROBLEM))
            if len(self.problems) >= limits.PROBLEMS:
                raise ConfigError("\n".join([*self.problems[:20], "… and many more"]))
        if unreadable:
            self.unreadable.add(keys)

    def at(self, keys: Keys) -> Any:
        node: Any = self.data
        for key in keys:
            node = node[key]
        return node

    def written(self, node: Any = None, keys: Keys = ()) -> Any:
        """The data, or one part of it, as it may be written down."""
        node = self.data if keys == () else node
        if keys in self.private:
            return Expression(self.interpolated[keys])
        if isinstance(node, dict):
            return {key: self.written(part, (*keys, key)) for key, part in node.items()}
        if isinstance(node, list):
            return [self.written(part, (*keys, index)) for index, part in enumerate(node)]
        return node

    def place(self, keys: Keys) -> str:
        """Where `keys` was written, or the nearest thing around it."""
        while keys not in self.places:
            keys = keys[:-1]
        return self.places[keys]

    def put(self, keys: Keys, value: Any, place: str) -> None:
        """Set one value; mappings missing on the way are made."""
        node: Any = self.data
        for depth, key in enumerate(keys[:-1], 1):
            inner = node.get(key) if isinstance(node, dict) else node[key]
            if inner is None:
                inner = node[key] = {}
                self.places[keys[:depth]] = place
            node = inner
        if type(node) not in (dict, list):
            raise ConfigError(f"{place}: `{dotted(keys[:-1])}` is {found(node)}, in which nothing can be set")
        node[keys[-1]] = value
        self.places = {k: p for k, p in self.places.items() if k[: len(keys)] != keys}
        self.places[keys] = place


def texts(node: Any, keys: Keys = ()) -> list[tuple[Keys, str]]:
    """Each text in plain data, and where it stands."""
    if isinstance(node, str):
        return [(keys, node)]
    parts = node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ())
    return [text for key, part in parts for text in texts(part, (*keys, key))]


class Expression(str):
    """Text whose `${…}` is to be resolved again when it is read."""


class Size:
    """How much a file holds, counted while it is read: what is too large is refused before it grows."""

    def __init__(self) -> None:
        self.nodes = 0
        self.text = 0

    def add(self, place: str, depth: int, value: Any = None) -> None:
        """Count one more key, value, list or mapping."""
        self.nodes += 1
        self.text += len(value) if isinstance(value, str) else 0
        for what, size, most in (
            ("lists and mappings within each other", depth, limits.PIPELINE_DEPTH),
            ("keys and values", self.nodes, limits.PIPELINE_NODES),
            ("characters", self.text, limits.PIPELINE_TEXT),
        ):
            if size > most:
                raise ConfigError(
                    f"{place}: holds more than {most:,} {what}, all that stands for others (`*alias`, `<<`, `${{…}}`) "
                    "written out; a pipeline is small, and what is large belongs in a data file or in Python"
                )

    def add_all(self, place: str, data: Any) -> None:
        """Count all of a tree."""
        level, depth = [data], 0
        while level:
            for node in level:
                for key in node if isinstance(node, dict) else ():
                    self.add(place, depth, key)
                self.add(place, depth, node)
            holders = [node for node in level if isinstance(node, dict | list)]
            level = [part for node in holders for part in (node.values() if isinstance(node, dict) else node)]
            depth += 1


def dotted(keys: Keys) -> str:
    """`phases[1].train.lr`"""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def read(text: str, name: str) -> Tree:
    """Parse a YAML file that is called `name` in messages."""
    tree = _parse(text, name)
    if tree.data is None:
        raise ConfigError(f"{name}: the file is empty; a pipeline names a task, a policy and an algorithm")
    if not isinstance(tree.data, dict):
        raise ConfigError(f"{name}:1: expected a mapping (`task: …`), found {found(tree.data)}")
    return tree


def value(text: str, name: str) -> Any:
    """One YAML value, as written on the command line."""
    tree = _parse(text, name)
    if tree.problems:
        raise ConfigError("\n".join(tree.problems))
    return tree.data


def dump(data: Mapping[str, Any]) -> str:
    """YAML that `read` reads back as `data`; `escape` it first if `${` must survive interpolation."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def escape(data: Any) -> Any:
    """The tree in which text that holds a literal `${`, and is no `Expression`, reads back as that text."""
    if isinstance(data, dict):
        return {key: escape(part) for key, part in data.items()}
    if isinstance(data, list):
        return [escape(part) for part in data]
    if isinstance(data, Expression):
        return str(data)
    if isinstance(data, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", data)
    return data


def expressions(data: Any) -> Any:
    """A model's config.json, in which variables of the environment are read again."""
    if isinstance(data, dict):
        return {key: expressions(part) for key, part in data.items()}
    if isinstance(data, list):
        return [expressions(part) for part in data]
    return Expression(data) if isinstance(data, str) and re.search(r"\$\{oc\.env:\w+\}", data) else data


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_STR = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_SURPRISES = {_INT, _FLOAT, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 where `1e-5` is a number, and `2026-11-20`, `12:30` and `010` are text."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name
        self.size = Size()
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self.size.add(f"{self.name}:{event.start_mark.line + 1}", self.depth)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or `_Loader` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _SURPRISES]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = r"[eE][-+]?\d+"
_NUMBERS = {
    _INT: r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+)$",
    _FLOAT: rf"([-+]?((\d[\d_]*)?\.\d[\d_]*({_EXPONENT})?|\d[\d_]*\.?({_EXPONENT})|\d[\d_]*\."
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$",
}
for _cls in (_Loader, _Dumper):
    for _tag, _pattern in _NUMBERS.items():
        _cls.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


def _parse(text: str, name: str) -> Tree:
    try:
        loader = _Loader(text, name)
        node = loader.get_single_node()
        walk = _Walk(loader, name)
        if node is not None:
            walk.tree.data = walk.plain(node, (), ())
        return walk.tree
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        message = "; ".join(part for part in (error.problem, error.context) if part)
        if "\\t" in message or " tab " in message:
            message = "a tab stands where YAML takes spaces only; indent with spaces"
        raise ConfigError(f"{place}: not valid YAML: {message}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        message = str(error).partition("\n")[0]
        raise ConfigError(f"{name}: not valid YAML: {message}") from None


class _Walk:
    """One walk over the parsed nodes: plain data, places, and no key said twice."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self.loader = loader
        self.name = name
        data: Any = None
        self.tree = Tree(data, {(): f"{name}:1"})
        self.size = Size()

    def plain(self, node: yaml.Node, keys: Keys, above: tuple[yaml.Node, ...]) -> Any:
        text = node.value if node.tag == _STR else None
        self.size.add(self.where(node), len(above), text)
        if any(node is outer for outer in above):
            return self.refuse(node, keys, "this part of the file contains itself")
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, keys, (*above, node))
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            for index, part in enumerate(node.value):
                self.tree.places[(*keys, index)] = self.where(part)
            return [self.plain(n, (*keys, i), (*above, node)) for i, n in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in (_INT, _FLOAT):
            if len(node.value) > limits.NUMBER_DIGITS:
                most = f"the longest that is read has {limits.NUMBER_DIGITS}; quote it if it is text"
                return self.refuse(node, keys, f"a number of {len(node.value):,} digits; {most}")
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self.loader.construct_object(node)
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        expected = "expected text, a number, true, false, null, a list or a mapping"
        return self.refuse(node, keys, f"{expected}, found the YAML type {tag}")

    def mapping(self, node: yaml.MappingNode, keys: Keys, above: tuple[yaml.Node, ...]) -> Any:
        merged: dict[str, Any] = {}
        for key_node, part in node.value:
            if key_node.tag == _MERGE:  # `<<: *base`, or a list of them, of which the first wins
                sources = part.value if isinstance(part, yaml.SequenceNode) else [part]
                for source in reversed(sources):
                    if isinstance(source, yaml.MappingNode):
                        merged |= self.plain(source, keys, above)
                    else:
                        self.refuse(source, keys, "`<<` takes a mapping, or a list of mappings")
        own: dict[str, Any] = {}
        for key_node, part in node.value:
            key = self.key(key_node, keys) if key_node.tag != _MERGE else None
            if key in own:
                first = self.tree.places[(*keys, key)]
                self.refuse(key_node, (*keys, key), f"said twice; the first time at {first}")
            elif key is not None:
                self.tree.places[(*keys, key)] = self.where(key_node)
                own[key] = self.plain(part, (*keys, key), above)
        return merged | own

    def key(self, node: yaml.Node, keys: Keys) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.tree.report(keys, "a key must be text, not a list or a mapping", place=self.where(node))
        elif node.tag in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"):
            text = f"YAML reads the key `{node.value}` as a {node.tag[18:]}; quote it"
            self.tree.report(keys, text, place=self.where(node))
        elif len(node.value) > limits.KEY_CHARACTERS:
            text = f"a key of {len(node.value):,} characters; the longest that is read has {limits.KEY_CHARACTERS:,}"
            self.tree.report(keys, text, place=self.where(node))
        else:
            self.size.add(self.where(node), 0, node.value)
            return str(node.value)
        return None

    def where(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def refuse(self, node: yaml.Node, keys: Keys, message: str) -> str:
        """Report a part of the file, and stand in for its value."""
        self.tree.report(keys, message, place=self.where(node), unreadable=True)
        return ""
