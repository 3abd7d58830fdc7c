"""Checks a mapping from the file against a pydantic model, and says in plain words what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlalign.config.places import Keys
from rlalign.config.words import found, unknown
from rlalign.data import limits
from rlalign.interface.code import find_module

M = TypeVar("M", bound=BaseModel)
Report = Callable[[Keys, str], None]

_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "null",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "path_not_file": "a file that exists",
    "path_not_directory": "a folder that exists",
}


def check(
    model: type[M], data: Mapping[str, Any], folder: Path, report: Report, *, trust: bool = True
) -> M | None:
    """`data` as a `model`; None after reporting what is wrong, with the path within `data`.

    Strict, but as JSON: a YAML list is a tuple where the model wants one, text is a path. Without `trust` no
    option may run code.
    """
    sound = True

    def wrong(keys: Keys, text: str) -> None:
        nonlocal sound
        sound = False
        report(keys, text)

    located = _with_absolute_paths([model], data, folder, (), wrong)
    try:
        checked = model.model_validate_json(json.dumps(located), strict=True, context={"trust": trust})
    except ValidationError as error:
        for keys, text in _problems(model, located, error):
            wrong(keys, text)
        return None
    return checked if sound else None


def absolute(path: str, folder: Path) -> Path:
    """A path in the file: relative to its folder, from home (`~`), or `pkg:package/path`.

    Raises ValueError for data that no installed package holds.
    """
    if not path.startswith("pkg:"):
        return folder / Path(path).expanduser()
    package, _, inside = path.removeprefix("pkg:").partition("/")
    spec = find_module(package)  # imports nothing
    homes = [] if spec is None else [Path(home) for home in spec.submodule_search_locations or ()]
    if not homes:
        raise ValueError(f"there is no package `{package}`; is it installed?")
    data = next((home / inside for home in homes if (home / inside).exists()), None)
    if data is None:
        raise ValueError(f"the package `{package}` holds no {inside}")
    return data


def _with_absolute_paths(
    annotations: Iterable[Any], value: Any, folder: Path, keys: Keys, report: Report
) -> Any:
    """`value` with absolute text wherever the annotations say `Path`."""
    choices = [choice for annotation in annotations for choice in _choices(annotation)]
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        located = {
            key: _with_absolute_paths(_inside(choices, key), part, folder, (*keys, key), report)
            for key, part in parts
        }
        return located if isinstance(value, dict) else list(located.values())
    if not isinstance(value, str) or Path not in choices:
        return value
    # `str | Path` is a name on some hub unless it looks like a path, or like a file of weights.
    if "://" in value and any(isinstance(c, type) and issubclass(c, str) and c is not str for c in choices):
        return value  # an address, of a type of its own
    looks = value.startswith(("./", "../", "/", "~", "pkg:")) or value.endswith(".gguf")
    if str in choices and not looks:
        return value
    try:
        return str(absolute(value, folder))
    except (ValueError, RuntimeError) as error:  # RuntimeError: no home for `~name`
        report(keys, f"{value!r}: {error}")
        return value


def _choices(annotation: Any) -> list[Any]:
    """The members of a union, bare of `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [choice for member in get_args(annotation) for choice in _choices(member)]
    return [annotation]


def _inside(choices: list[Any], key: str | int) -> list[Any]:
    """What the annotations say about the part at `key`."""
    inside = []
    for choice in choices:
        inner = get_args(choice)
        if _is_model(choice):
            if field := _fields(choice, ()).get(str(key)):
                inside.append(field.annotation)
        elif isinstance(key, int) and inner:
            each = ... in inner or key >= len(inner)
            inside.append(inner[0 if each else key])
        elif isinstance(key, str) and len(inner) == 2:
            inside.append(inner[1])
    return inside


def _problems(model: type[BaseModel], data: Any, error: ValidationError) -> list[tuple[Keys, str]]:
    """One message a place. The members of a union complain one by one: their wishes are joined."""
    problems: list[tuple[Keys, str]] = []
    expected: dict[Keys, list[str]] = {}
    for one in error.errors(include_url=False)[: limits.PROBLEMS]:
        loc, kind = one["loc"], one["type"]
        if kind == "extra_forbidden":
            problems.append((loc, unknown("option", str(loc[-1]), _fields(model, loc[:-1]))))
        elif kind == "missing":
            problems.append((_present(data, loc), _missing(model, loc)))
        elif kind in _EXPECTED:
            wish = _EXPECTED[kind].format(**{k: _plain(v) for k, v in one.get("ctx", {}).items()})
            expected.setdefault(_present(data, loc), []).append(wish)
        else:
            text = one["msg"].removeprefix("Value error, ")
            problems.append((_present(data, loc), text))
    for keys, wishes in expected.items():
        value = data
        for key in keys:
            value = value[key]
        text = f"expected {' or '.join(dict.fromkeys(wishes))}, found {found(value)}"
        if isinstance(value, str) and "a number" in wishes and _NO_NUMBER.fullmatch(value):
            text = f"expected a finite number, found {value}"
        if isinstance(value, float) and value.is_integer() and "a whole number" in wishes:
            text += f"; write {int(value)}"
        if isinstance(value, str) and (close := get_close_matches(repr(value), _quoted(wishes), 1)):
            text += f"; did you mean {close[0]}?"
        problems.append((keys, text))
    return problems


_NO_NUMBER = re.compile(r"[-+]?(nan|inf(inity)?)", re.IGNORECASE)


def _plain(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _quoted(wishes: list[str]) -> list[str]:
    """The choices in pydantic's "'linear' or 'cosine'"."""
    return re.findall(r"'[^']*'", " ".join(wishes))


def _missing(model: type[BaseModel], loc: Keys) -> str:
    if isinstance(loc[-1], int):
        return f"too few entries: number {loc[-1] + 1} is missing"
    field = _fields(model, loc[:-1]).get(loc[-1])
    about = f" ({field.description})" if field is not None and field.description else ""
    return f"`{loc[-1]}` is missing{about}"


def _fields(model: Any, loc: Keys) -> dict[str, FieldInfo]:
    """The fields of the model at `loc`, in which list indices and names of union members may stand."""
    for key in loc:
        if field := model.model_fields.get(str(key)):
            model = next(_models(field.annotation), model)
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models(annotation: Any) -> Iterator[Any]:
    if _is_model(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _present(data: Any, loc: Keys) -> Keys:
    """The part of `loc` the data has: the rest names members of a union, or what is missing."""
    for depth, key in enumerate(loc):
        inside = key in data if isinstance(data, dict) else isinstance(data, list) and key in range(len(data))
        if not inside:
            return loc[:depth]
        data = data[key]
    return loc
