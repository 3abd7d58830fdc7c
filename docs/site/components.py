"""A page for each component, and one for each kind of them, as the code says what they are."""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tables
import yaml
from pydantic.errors import PydanticInvalidForJsonSchema

from rlalign.cli.catalogue import details
from rlalign.config.outline import KINDS, outline

ROOT = tables.ROOT
SECTIONS = ("task", "policy", "models", "rewards", "responses", "algorithm", "observers", "use")
"""Keys of a pipeline under which components stand."""


def packages() -> list[Path]:
    """Those that are installed for their components; the examples are a stranger's."""
    return [package for package in tables.packages() if "examples" not in package.parts]


@cache
def declared() -> Mapping[str, tuple[str, str]]:
    """`module:Class` and the package's folder, by the component's name."""
    found = {}
    for package in packages():
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        for name, value in project.get("entry-points", {}).get("rlalign", {}).items():
            found[name] = (value, package.relative_to(ROOT).as_posix())
    return dict(sorted(found.items()))


@cache
def addresses() -> Mapping[str, str]:
    """Where a component's page lies."""
    return {
        name: f"components/{_slug(outline(value).kind)}/{name}" for name, (value, _) in declared().items()
    }


def pages() -> dict[str, str]:
    """Their text, by their places."""
    used = users()
    found = {f"{addresses()[name]}.md": _component(name, used.get(name, [])) for name in declared()}
    kinds = {
        kind: [n for n, (value, _) in declared().items() if outline(value).kind == kind] for kind in KINDS
    }
    kinds = {kind: names for kind, names in kinds.items() if names}
    found |= {f"components/{_slug(kind)}/index.md": _kind(kind, names) for kind, names in kinds.items()}
    rows = [
        (
            f"[{_title(kind)}]({_slug(kind)}/index.md)",
            str(len(names)),
            ", ".join(_link(n, "components") for n in names),
        )
        for kind, names in kinds.items()
    ]
    tree = "\n".join(f"{_slug(kind)}/index" for kind in kinds)
    found["components/index.md"] = (
        "# Components by kind\n\nA component is what a pipeline names: each has a page, with its options.\n\n"
        f"{tables.as_table([('kind', 'how many', 'which'), *rows])}\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    )
    return found


def _slug(kind: str) -> str:
    return _title(kind).lower().replace(" ", "-")


def _title(kind: str) -> str:
    return KINDS[kind].partition(" (")[0].capitalize()


def _link(name: str, folder: str) -> str:
    return f"[`{name}`]({os.path.relpath(addresses()[name], folder)}.md)"


def _kind(kind: str, names: list[str]) -> str:
    told = re.search(r"\((.*)\)", KINDS[kind])
    rows = [
        (_link(name, f"components/{_slug(kind)}"), _words(outline(declared()[name][0]).sentence))
        for name in names
    ]
    first = f"{told[1][0].upper()}{told[1][1:]}.\n\n" if told else ""
    return f"# {_title(kind)}\n\n{first}{tables.as_table([(kind, 'what'), *rows])}"


# -- one of them -----------------------------------------------------------------------------------------------


def _component(name: str, used: list[str]) -> str:
    value, package = declared()[name]
    cls = tables.load(value)
    told = details(name, cls, outline(value), None)
    above = os.path.relpath(".", Path(addresses()[name]).parent)
    parts = [
        f"# `{name}`\n\n{_kind_of(told['kind'])} of [{_distribution(package)}]({above}/{package}/README.md).",
        _words(inspect.getdoc(cls) or ""),
        *(
            [f"```{{code-block}} text\n:class: equation\n\n{told['equation']}\n```"]
            if told["equation"]
            else []
        ),
        *([f"Paper: {_words(told['paper'])}."] if told["paper"] else []),
        f"## In a pipeline\n\n```yaml\n{_example(name, told)}```",
        f"## Options\n\n{_options(cls, told['options'])}",
        f"## What it declares\n\n{tables.as_table([('declaration', ''), *_declared(told, above)])}",
        f"It is `{value}`.",
    ]
    if used:
        parts.append(f"## Pipelines that name it\n\n{_used(used, above)}")
    return "\n\n".join(parts) + "\n"


def _kind_of(kind: str) -> str:
    """With the list of its like."""
    word = {"responses": "source of responses"}.get(kind, kind)
    return f"{'An' if word[0] in 'aeiou' else 'A'} [{word}](index.md)"


def _distribution(package: str) -> str:
    return "rlalign" if package == "core" else f"rlalign-plugin-{Path(package).name}"


def _words(text: str) -> str:
    """A docstring as Markdown: what is no `code` and looks like markup means itself."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*<>\[\]|\\])", r"\\\1", part) for part in parts
    )


def _example(name: str, told: Mapping[str, Any]) -> str:
    """The lines of a pipeline that name it, with what has to be said."""
    must = [option["name"] for option in told["options"] if option["required"] and "." not in option["name"]]
    item = f"{name}: {{{', '.join(f'{one}: …' for one in must)}}}" if must else name
    place = told["places"][0] if told["places"] else "algorithm"
    if told["kind"] == "value" or told["kind"] == "sampler":
        return f"models: {{{told['kind']}: {f'{{{item}}}' if must else item}}}\n"
    if told["kind"].endswith("wrapper"):
        return f"{place}:\n- …  # what it wraps stands above it\n- {item}\n"
    if place == "evaluate.use":
        return f"evaluate:\n  use:\n  - {item}\n"
    if place in ("rewards", "observers"):
        return f"{place}:\n- {item}\n"
    return f"{place}: {f'{{{item}}}' if must else item}\n"


def _options(cls: type[Any], options: list[dict[str, Any]]) -> str:
    if not options:
        return "None."
    types = dict(_types(_schema(cls)))
    rows = [
        (
            f"`{one['name']}`",
            types.get(one["name"], ""),
            "required" if one["required"] else f"`{_default(one['default'])}`".replace("|", "\\|"),
            one["meaning"].replace("|", "\\|"),
        )
        for one in options
    ]
    return tables.as_table([("option", "type", "default", "meaning"), *rows])


def _default(value: Any) -> str:
    told = isinstance(value, str) and value and value.isprintable()
    return str(value) if told else json.dumps(value, ensure_ascii=False)


def _schema(cls: type[Any]) -> dict[str, Any]:
    with warnings.catch_warnings(action="ignore"):
        try:
            found: dict[str, Any] = cls.Config.model_json_schema(by_alias=True)
        except PydanticInvalidForJsonSchema:  # a type that JSON cannot tell
            return {}
    return found


def _types(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    known = schema.get("$defs", {})
    for name, part in schema.get("properties", {}).items():
        yield name, _type(part, known)
        for inner in re.findall(r'"#/\$defs/(\w+)"', json.dumps(part)):
            for below, one in known[inner].get("properties", {}).items():
                yield f"{name}.{below}", _type(one, known)


NAMES = {
    "string": "text",
    "number": "number",
    "integer": "whole number",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}


def _type(part: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in part:
        return _type(known[part["$ref"].rpartition("/")[2]], known)
    if inner := part.get("anyOf") or part.get("oneOf") or part.get("allOf"):
        return " or ".join(dict.fromkeys(filter(None, (_type(one, known) for one in inner))))
    if values := part.get("enum") or ([part["const"]] if "const" in part else []):
        return ", ".join(f"`{_default(one)}`" for one in values)
    kind = part.get("type")
    if kind == "array":
        inside = _type(part["items"], known) if isinstance(part.get("items"), dict) else ""
        return f"list of {inside}" if inside else "list"
    if kind == "object":
        of = part.get("additionalProperties")
        inside = _type(of, known) if isinstance(of, dict) else ""
        return f"mapping to {inside}" if inside else "mapping"
    bounds = ", ".join(text.format(f"{part[key]:g}") for key, text in BOUNDS.items() if key in part)
    return f"{NAMES.get(str(kind), '')} {bounds}".strip()


def _declared(told: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    hooks = [(one.partition(" ")[0], one.partition(" ")[2]) for one in told["hooks"]]
    sets = [
        f"`{s}.{key}: {json.dumps(v)}`" for s, values in told["defaults"].items() for key, v in values.items()
    ]
    models = [name if name == role else f"{name} ({role})" for name, role in told["models"].items()]
    fewest = f"{told['min_samples']} a prompt or more" if told["min_samples"] > 1 else ""
    low, high = told.get("bounds", (None, None))
    rows = {
        "stands under": " or ".join(f"`{place}`" for place in told["places"]),
        "hooks": ", ".join(f"[`{hook}`]({above}/docs/hooks.md#{hook}) {how}".strip() for hook, how in hooks),
        "models": ", ".join(models),
        "needs": ", ".join(f"`{need}`" for need in told["needs"]),
        "trains": ", ".join(f"`{model}`" for model in told["trains"]),
        "responses": ", ".join(filter(None, (told["responses"], fewest))),
        "sets": ", ".join(sets),
        "scores": told.get("level", ""),
        "better is": ("higher" if told["higher_is_better"] else "lower") if "level" in told else "",
        "least": "" if low is None else f"{low:g}",
        "most": "" if high is None else f"{high:g}",
        "signature": f"`{told['signature']}`".replace("|", "\\|") if told.get("signature") else "",
    }
    return ((row, text) for row, text in rows.items() if text)


# -- who uses it -------------------------------------------------------------------------------------------------


def users() -> dict[str, list[str]]:
    """The pipelines of examples and recipes that name a component."""
    found: dict[str, list[str]] = {}
    for path in sorted([*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("recipes/**/*.yaml")]):
        if "runs" not in path.parts:
            for name in {one for one in _named(yaml.safe_load(path.read_text())) if one in declared()}:
                found.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    return found


def _named(data: Any) -> Iterator[str]:
    """Names in the places of components."""
    for key, value in data.items() if isinstance(data, dict) else ():
        if key in SECTIONS:
            items = value if isinstance(value, list) else [value]
            if key == "models" and isinstance(value, dict):
                items = list(value.values())
            for item in items:
                yield from (item if isinstance(item, dict) else [str(item)])
        for part in value if isinstance(value, list) else [value]:
            yield from _named(part)


def _used(paths: list[str], above: str) -> str:
    """A line for each folder."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    lines = []
    for folder, several in folders.items():
        lines.append(f"- {folder}: " + ", ".join(f"[{Path(one).stem}]({above}/{one})" for one in several))
    return "\n".join(lines)
