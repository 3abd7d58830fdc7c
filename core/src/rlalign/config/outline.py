"""What a component is, read from its file: nothing is imported, so that one that is broken, or slow, is told too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rlalign.interface.code import Code

BASES = {"Policy": "policy", "Value": "value", "Sampler": "sampler", "Task": "task", "Component": "component"}
KINDS = {
    "policy": "policies",
    "value": "values",
    "sampler": "samplers (who sample in the policy's place)",
    "task": "tasks",
    "responses": "sources of responses",
    "reward": "rewards (a number for each response; under `evaluate.use` its mean, a metric)",
    "reward wrapper": "wrappers of rewards",
    "algorithm": "algorithms",
    "advantage wrapper": "wrappers of advantages",
    "metric": "metrics (of all responses together; under `evaluate.use` only)",
    "observer": "observers (they watch a run)",
    "": "not told by their files (`rlalign plugins --check` imports them)",
}
"""Kinds of components, and what several are called."""
_WATCHING = {"phase_started", "iteration_done", "evaluated", "run_ended"}


@dataclass(frozen=True)
class Outline:
    """What a component's file says of it. Empty where that cannot be told without running it."""

    base: str = ""
    """`policy`, `value`, `task` or `component`."""
    sentence: str = ""
    hooks: Mapping[str, str] = field(default_factory=dict)
    """The hooks it implements, each `plain` or `wrapper`."""

    @property
    def kind(self) -> str:
        """One of `KINDS`: where it stands first of all."""
        if self.base != "component":
            return self.base
        if "rollout" in self.hooks:
            return "responses"
        for hook in ("loss", "update", "advantage", "reward"):
            if hook in self.hooks:
                plain = "reward" if hook == "reward" else "algorithm"
                wrapper = "reward wrapper" if hook == "reward" else "advantage wrapper"
                return plain if self.hooks[hook] == "plain" else wrapper
        if "run_ended" in self.hooks and self.hooks.keys() <= _WATCHING:
            return "observer"
        return "metric" if "evaluate" in self.hooks else "algorithm"

    @property
    def level(self) -> str:
        """What a reward or a metric gives a number for: `sentence`, `corpus`, or `sentence and corpus`; else empty."""
        if self.kind not in ("reward", "metric"):
            return ""
        levels = [("sentence", "reward"), ("corpus", "evaluate")]
        return " and ".join(level for level, hook in levels if self.hooks.get(hook) == "plain")

    @property
    def places(self) -> list[str]:
        """The keys of a pipeline under which it may stand."""
        rewards = ["rewards", "evaluate.use"]
        first = {
            "policy": ["policy"],
            "value": ["models"],
            "sampler": ["models"],
            "task": ["task"],
            "responses": ["responses", *(rewards if "reward" in self.hooks else [])],
            "reward": rewards,
            "reward wrapper": rewards,
            "algorithm": ["algorithm"],
            "advantage wrapper": ["algorithm"],
            "metric": ["evaluate.use"],
            "observer": ["observers"],
        }.get(self.kind, [])
        measures = self.base == "component" and "evaluate" in self.hooks
        return list(dict.fromkeys([*first, *(["evaluate.use"] if measures else [])]))


def outline(value: str) -> Outline:
    """Of a component's entry point, `module:Class`."""
    module, _, name = value.partition(":")
    try:
        return _of_class(module.strip(), name.partition("[")[0].strip(), 0)
    except (ValueError, OSError):  # its file is not Python, or cannot be read
        return Outline()


def sentence(docstring: str | None) -> str:
    """The first sentence of a docstring: its first line, and those after it until one ends."""
    lines: list[str] = []
    for line in (docstring or "").strip().splitlines():
        if not line.strip():
            break
        lines.append(line.strip())
        if line.rstrip().endswith((".", ":", "!", "?")):
            break
    return re.split(r"(?<!\bal\.)(?<!\beq\.)(?<=[.!?]) (?=[A-Z])", " ".join(lines))[0]


MOST = 20
"""Imports and bases that are followed."""


def _of_class(module: str, name: str, depth: int) -> Outline:
    if module.partition(".")[0] == "rlalign" and name in BASES:
        return Outline(BASES[name])
    node = _names(module).get(name) if depth < MOST else None
    if isinstance(node, ast.ClassDef):
        above = [_of_class(*_base(module, base), depth + 1) for base in node.bases]
        base = next((one.base for one in above if one.base), "")
        hooks = {hook: how for one in reversed(above) for hook, how in one.hooks.items()}
        return Outline(base, sentence(ast.get_docstring(node)), {**hooks, **dict(_hooks(node))})
    return _of_class(*node, depth + 1) if isinstance(node, tuple) else Outline()


@cache
def _names(module: str) -> dict[str, ast.ClassDef | tuple[str, str]]:
    """The classes of a module's file, and what it imports: (module, name)."""
    code = Code.find(module, "") if module else None
    found: dict[str, ast.ClassDef | tuple[str, str]] = {}
    waiting: list[ast.stmt] = list(reversed(code.tree.body)) if code else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name] = (alias.name, "")
        elif isinstance(node, ast.ImportFrom) and code:
            for alias in node.names:
                found[alias.asname or alias.name] = (_imported(code, node), alias.name)
        elif isinstance(node, ast.If | ast.Try):
            waiting += reversed(node.body)
    return found


@dataclass(frozen=True)
class Declared:
    """What a component's file says in plain literals; what has to be computed is not in it."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of its options."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Its class attributes, such as `defaults` and `higher_is_better`."""


_COMPUTED = object()


def declared(value: str) -> Declared:
    """Of a component's entry point, `module:Class`."""
    module, _, name = value.partition(":")
    try:
        found = _declared(module.strip(), name.partition("[")[0].strip(), 0)
    except (ValueError, OSError):
        return Declared()
    return Declared(
        *(
            {key: value for key, value in part.items() if value is not _COMPUTED}
            for part in vars(found).values()
        )
    )


def _declared(module: str, name: str, depth: int) -> Declared:
    node = _names(module).get(name) if depth < MOST else None
    if isinstance(node, tuple):
        return _declared(*node, depth + 1)
    if node is None:
        return Declared()
    above = [_declared(*_base(module, base), depth + 1) for base in reversed(node.bases)]
    options = {key: value for one in above for key, value in one.options.items()}
    attributes = {key: value for one in above for key, value in one.attributes.items()}
    for part in node.body:
        if isinstance(part, ast.ClassDef) and part.name == "Config":
            options = _fields(module, part, depth)
    return Declared(options, attributes | _literals(node))


def _fields(module: str, node: ast.ClassDef, depth: int) -> dict[str, Any]:
    """The defaults of a model's fields, and of the models that it derives from."""
    found: dict[str, Any] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Attribute) and base.attr == "Config":  # `class Config(Another.Config)`
            found |= _declared(*_base(module, base.value), depth + 1).options
            continue
        home, name = _base(module, base)
        other: Any = (home, name)
        while isinstance(other, tuple) and depth < MOST:
            depth, (home, name) = depth + 1, other
            other = _names(home).get(name)
        if isinstance(other, ast.ClassDef):
            found |= _fields(home, other, depth)
    for mark in node.decorator_list:  # `@preset(clip=0.2)`: other defaults for what it has from above
        said = {one.arg: _literal(one.value) for one in getattr(mark, "keywords", []) if one.arg in found}
        found |= said
    return found | _literals(node)


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """What a class's statements set its names to, or fields by `Field(…)`; `_COMPUTED` where that is no literal."""
    found: dict[str, Any] = {}
    for part in node.body:
        if isinstance(part, ast.Assign):
            names, value = [one.id for one in part.targets if isinstance(one, ast.Name)], part.value
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.value is not None:
            if "ClassVar" in ast.unparse(part.annotation):
                continue
            names, value = [part.target.id], part.value
        else:
            continue
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "Field":
            said = [*value.args, *(keyword.value for keyword in value.keywords if keyword.arg == "default")]
            value = said[0] if said else value
        found |= dict.fromkeys(names, _literal(value))
    return found


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _COMPUTED


def _imported(code: Code, node: ast.ImportFrom) -> str:
    """The module that `from … import` means."""
    if not node.level:
        return node.module or ""
    package = code.module if code.file and code.file.name == "__init__.py" else code.module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _base(module: str, base: ast.expr) -> tuple[str, str]:
    """(module, name) of a base class as it is written."""
    base = base.value if isinstance(base, ast.Subscript) else base
    if isinstance(base, ast.Attribute):
        home = _names(module).get(ast.unparse(base.value))
        return (".".join(filter(None, home)), base.attr) if isinstance(home, tuple) else ("", "")
    return module, base.id if isinstance(base, ast.Name) else ""


def _hooks(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for part in (part for part in node.body if isinstance(part, ast.FunctionDef)):
        for mark in part.decorator_list:
            call = mark.func if isinstance(mark, ast.Call) else mark
            if "hookimpl" not in (getattr(call, "id", ""), getattr(call, "attr", "")):
                continue
            said = mark.keywords if isinstance(mark, ast.Call) else []
            wraps = any(k.arg == "wrapper" and getattr(k.value, "value", False) for k in said)
            yield part.name, "wrapper" if wraps else "plain"
