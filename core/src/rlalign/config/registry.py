"""Which components are installed; loads the one a pipeline names, and never any other."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel

from rlalign.config.words import did_you_mean
from rlalign.errors import ConfigError
from rlalign.interface.component import Component, Task

GROUP = "rlalign"
Kind = Literal["policy", "value", "task", "component"]
_NONE: Mapping[str, type[Any]] = MappingProxyType({})


@dataclass(frozen=True, order=True)
class Installed:
    """A component of an installed distribution, as its metadata says; nothing is imported."""

    name: str
    distribution: str
    version: str
    value: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Loaded:
    """A component's class and, unless it came from a plain module, what is installed of it."""

    cls: type[Any]
    installed: Installed | None


def installed() -> list[Installed]:
    """Every component that is installed, by name."""
    # `entry_points` reads one metadata folder a distribution, the first on sys.path: an editable
    # install beside a wheel of the same package lists nothing twice.
    return sorted(
        Installed(point.name, point.dist.name, point.dist.version, point.value)
        for point in entry_points(group=GROUP)
        if point.dist is not None
    )


class Registry:
    """Finds components by name: those handed in (`extra`) first, then the installed ones."""

    def __init__(self, extra: Mapping[str, type[Any]] = _NONE) -> None:
        self.extra = dict(extra)

    @cached_property
    def installed(self) -> list[Installed]:
        return installed()

    def load(self, name: str, folder: Path | None = None) -> Loaded:
        """The class behind `name`, `distribution:name` or `module:Class`.

        `folder` is where code that is not packaged yet is looked for; it is on `sys.path` during
        that one import only.
        """
        loaded = self._find(name, folder)
        _check(name, loaded.cls)
        return loaded

    def _find(self, name: str, folder: Path | None) -> Loaded:
        if name in self.extra:
            return Loaded(self.extra[name], None)
        found = [one for one in self.installed if one.name == name]
        if not found and ":" in name:
            distribution, _, short = name.partition(":")
            asked = _canonical(distribution)
            theirs = [one for one in self.installed if _canonical(one.distribution) == asked]
            if not theirs:
                return Loaded(_import_class(name, folder), None)
            found = [one for one in theirs if one.name == short]
            if not found:
                names = ", ".join(one.name for one in theirs)
                raise ConfigError(f"{theirs[0]} has no component `{short}` (it has: {names})")
        if not found:
            raise ConfigError(self._unknown(name))
        if len(found) > 1:
            owners = " and ".join(map(str, found))
            choices = " or ".join(f"`{one.distribution}:{name}`" for one in found)
            raise ConfigError(f"`{name}` is in {owners}; say which one: {choices}")
        return Loaded(_load(found[0]), found[0])

    def _unknown(self, name: str) -> str:
        hint = did_you_mean(name, [*self.extra, *(one.name for one in self.installed)], most=3)
        return f"no component named `{name}` is installed" + (
            hint
            or "; `rlalign plugins` lists those that are. "
            f"Is its package missing (pip install rlalign-plugin-{name})?"
        )


def kind(cls: type[Any]) -> Kind:
    """What a component is; it follows from its base class."""
    from rlalign.interface.policy import Policy, Value

    kinds: dict[type[Any], Kind] = {Policy: "policy", Value: "value", Task: "task", Component: "component"}
    for base, word in kinds.items():
        if isinstance(cls, type) and issubclass(cls, base):
            return word
    name = getattr(cls, "__qualname__", repr(cls))
    message = f"{name} is no component: it must derive from rlalign's Component, Task, Policy or Value"
    raise ConfigError(message)


def _check(name: str, cls: type[Any]) -> None:
    try:
        kind(cls)
    except ConfigError as error:
        raise ConfigError(f"`{name}`: {error}") from None
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise ConfigError(f"`{name}`: {cls.__name__}.Config must be a pydantic model (`rlalign.Options`)")
    if config.model_config.get("extra") not in ("forbid", "allow"):
        raise ConfigError(
            f"`{name}`: {cls.__name__}.Config would take misspelt options without a word; "
            'derive it from `rlalign.Options` (or set extra="forbid")'
        )


def _load(one: Installed) -> type[Any]:
    try:
        return EntryPoint(one.name, one.value, GROUP).load()  # type: ignore[no-any-return]
    except Exception as error:
        cure = f"the fault lies in {one.distribution}"
        if isinstance(error, ImportError):
            cure = f"`pip install {one.distribution}` adds what it requires"
        message = f"`{one.name}` ({one}) cannot be imported: {_cause(error)}; {cure}"
        raise ConfigError(message) from error


def _import_class(name: str, folder: Path | None) -> type[Any]:
    module_name, _, attribute = name.partition(":")
    with _on_path(folder):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not _concerns(module_name, error.name):
                raise ConfigError(f"`{name}` cannot be imported: {_cause(error)}") from error
            where = f", nor in {folder}" if folder else ""
            hint = "; leave out `.py`" if module_name.endswith(".py") else ""
            raise ConfigError(
                f"`{name}`: `{module_name}` is neither an installed distribution with components "
                f"nor a module that Python finds{where}{hint}"
            ) from None
        except Exception as error:
            raise ConfigError(f"`{name}` cannot be imported: {_cause(error)}") from error
    if folder:
        _refuse_stranger(name, module_name.partition(".")[0], folder)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise ConfigError(f"`{name}`: the module `{module_name}` has no `{attribute}`{hint}")
    return getattr(module, attribute)  # type: ignore[no-any-return]


@contextmanager
def _on_path(folder: Path | None) -> Iterator[None]:
    before = list(sys.path)
    if folder:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _refuse_stranger(name: str, top: str, folder: Path) -> None:
    """Two pipelines' folders may hold modules of one name; Python would go on using the first."""
    used = getattr(sys.modules[top], "__file__", None)
    for mine in (folder / f"{top}.py", folder / top / "__init__.py"):
        if used and mine.is_file() and not mine.samefile(used):
            raise ConfigError(f"`{name}`: Python has `{top}` from {used} already; rename {mine}")


def _concerns(module_name: str, missing: str | None) -> bool:
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
