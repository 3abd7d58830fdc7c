"""A pipeline, or a part of one, as Python data: what a file would say. Classes and functions go by their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from types import FunctionType
from typing import Any

from rlalign.config.places import Keys, dotted
from rlalign.config.words import found
from rlalign.errors import ConfigError

Given = Callable[..., Any]
"""A component's class, or a function that is a reward."""
Overrides = Mapping[str, Any] | Sequence[str]
"""`{"train.lr": 1e-4}`, or `["train.lr=1e-4"]` as on the command line."""


def plain(value: Any, known: dict[str, Given], keys: Keys = ()) -> Any:
    """The value as YAML would give it; a class or a function becomes its name, under which `known` then holds it."""
    if isinstance(value, type | FunctionType):
        return _named(value, known, keys)
    if isinstance(value, Mapping):
        names = {key: _key(key, known, keys) for key in value}
        return {names[key]: plain(part, known, (*keys, names[key])) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, known, (*keys, i)) for i, part in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or type(value) in (str, bool, int, float):
        return value
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy or torch
        return value.item()
    where = f"{dotted(keys)}: " if keys else ""
    raise ConfigError(
        f"{where}expected text, a number, true, false, null, a list, a mapping or a component's class, "
        f"found {found(value)}"
    )


def overrides_as_text(said: Overrides, known: dict[str, Given]) -> list[str]:
    """Overrides as `key=value`."""
    if not isinstance(said, Mapping):
        return list(said)
    return as_overrides({key: plain(value, known, (key,)) for key, value in said.items()})


def as_overrides(said: Mapping[str, Any]) -> list[str]:
    """`{"train.lr": 1e-4}` as `key=value`."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in said.items()]


def _key(key: Any, known: dict[str, Given], keys: Keys) -> str:
    if isinstance(key, type | FunctionType):
        return _named(key, known, keys)
    if not isinstance(key, str):
        where = f"{dotted(keys)}: " if keys else ""
        raise ConfigError(f"{where}expected a name or a component's class as a key, found {found(key)}")
    return key


def _named(given: Given, known: dict[str, Given], keys: Keys) -> str:
    name = next((name for name, other in known.items() if other is given), given.__name__)
    if name not in known and not name.isidentifier():
        raise ConfigError(f"{dotted(keys)}: `{name}` cannot be a name in a pipeline; {_CHOOSE}")
    if known.setdefault(name, given) is not given:
        raise ConfigError(f"{dotted(keys)}: two components are called `{name}`; {_CHOOSE}")
    return name


_CHOOSE = "choose one by components={'a-name': …}, and write that instead"
