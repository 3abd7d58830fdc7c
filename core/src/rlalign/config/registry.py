"""Which components are installed; loads the one a pipeline names, and never any other."""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
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
from rlalign.errors import ConfigError, RLAlignError
from rlalign.interface.code import ADD_TRUST, Code
from rlalign.interface.component import Component, Task
from rlalign.packages import while_installed

GROUP = "rlalign"
Kind = Literal["policy", "value", "sampler", "task", "component"]
_NONE: Mapping[str, type[Any]] = MappingProxyType({})
_log = logging.getLogger("rlalign")


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


@while_installed
def installed() -> tuple[Installed, ...]:
    """Every component that is installed, by name."""
    # `entry_points` reads one metadata folder a distribution, the first on sys.path: an editable
    # install beside a wheel of the same package lists nothing twice.
    points = entry_points(group=GROUP)
    dists = {point.dist for point in points if point.dist is not None}
    about = {dist: dist.metadata for dist in dists}  # which is parsed anew each time it is asked for
    # What is half installed has neither.
    named = {
        d: (said["Name"], said["Version"]) for d, said in about.items() if {"Name", "Version"} <= {*said}
    }
    found = (Installed(p.name, *named[p.dist], p.value) for p in points if p.dist in named)
    return tuple(sorted(found))


class Registry:
    """Finds components by name: those handed in (`extra`) first, then the installed ones.

    Code that is not installed runs only under `trust`: it belongs to whoever wrote the pipeline or the model.
    """

    def __init__(self, extra: Mapping[str, type[Any]] = _NONE, *, trust: bool = False) -> None:
        self.extra = dict(extra)
        self.trust = trust

    @cached_property
    def installed(self) -> tuple[Installed, ...]:
        return installed()

    def load(self, name: str, folder: Path | None = None) -> Loaded:
        """The class behind `name`, `distribution:name` or `module:Class`.

        `folder` is where code that is not packaged yet is looked for; it is on `sys.path` during
        that one import only.
        """
        loaded = self._find(name, folder)
        _check(name, loaded.cls)
        return loaded

    def require(self, name: str, folder: Path) -> None:
        """Refuse a name that nothing bears; imports nothing."""
        if name not in self.extra and self._installed(name) is None:
            self._code(name, folder)

    def _find(self, name: str, folder: Path | None) -> Loaded:
        if name in self.extra:
            return Loaded(self.extra[name], None)
        one = self._installed(name)
        return Loaded(self._import(name, folder), None) if one is None else Loaded(_load(one), one)

    def _installed(self, name: str) -> Installed | None:
        """The installed component of this name; None where it names a class in a module."""
        found = [one for one in self.installed if one.name == name]
        if not found and ":" in name:
            distribution, _, short = name.partition(":")
            asked = _canonical(distribution)
            theirs = [one for one in self.installed if _canonical(one.distribution) == asked]
            if not theirs:
                return None
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
        return found[0]

    def _code(self, name: str, folder: Path | None) -> Code:
        """Where `module:Class` is written. The core's own modules need no trust."""
        module, _, attribute = name.partition(":")
        own = _is_own(module)
        folder = None if own else folder
        code = Code.find(module, attribute, folder)
        if code is None:
            where = f", nor in {folder}" if folder else ""
            hint = "; leave out `.py`" if module.endswith(".py") else ""
            raise ConfigError(
                f"`{name}`: `{module}` is neither an installed distribution with components "
                f"nor a module that Python finds{where}{hint}"
            )
        if not (own or self.trust):
            raise ConfigError(
                f"`{name}` would import {code.file or module}, which no installed package offers; {ADD_TRUST}"
            )
        try:
            if module not in sys.modules:
                if code.is_absent():
                    raise ConfigError(f"`{name}`: {code.absence()}")
                if code.is_no_class():
                    raise ConfigError(f"`{name}`: {NO_COMPONENT.format(attribute)}")
        except ValueError as error:
            raise ConfigError(f"`{name}` cannot be imported: {_cause(error)}") from error
        return code

    def _import(self, name: str, folder: Path | None) -> type[Any]:
        code = self._code(name, folder)
        if code.module not in sys.modules and not _is_own(code.module):
            _log.info("imports %s: the pipeline names its `%s`", code.file or code.module, code.name)
        try:
            return code.load()  # type: ignore[no-any-return]
        except RLAlignError:
            raise
        except Exception as error:
            raise ConfigError(f"`{name}` cannot be imported: {_cause(error)}") from error

    def _unknown(self, name: str) -> str:
        hint = did_you_mean(name, [*self.extra, *(one.name for one in self.installed)], most=3)
        return f"no component named `{name}` is installed" + (
            hint or "; `rlalign plugins` lists those that are. Is the package that has it missing?"
        )


def _is_own(module: str) -> bool:
    return f"{module}.".startswith("rlalign.")


NO_COMPONENT = "{} is no component: it must derive from rlalign's Component, Task, Policy, Value or Sampler"


def kind(cls: type[Any]) -> Kind:
    """What a component is; it follows from its base class."""
    from rlalign.interface.policy import Policy, Value
    from rlalign.interface.sampler import Sampler

    kinds: dict[type[Any], Kind] = {
        Policy: "policy",
        Value: "value",
        Sampler: "sampler",
        Task: "task",
        Component: "component",
    }
    for base, word in kinds.items():
        if isinstance(cls, type) and issubclass(cls, base):
            return word
    name = getattr(cls, "__qualname__", repr(cls))
    raise ConfigError(NO_COMPONENT.format(name))


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
        with _uninterrupted():
            return EntryPoint(one.name, one.value, GROUP).load()  # type: ignore[no-any-return]
    except Exception as error:
        cure = f"the fault lies in {one.distribution}"
        if isinstance(error, ImportError):
            cure = "`pip check` tells which packages it requires and are not installed"
        message = f"`{one.name}` ({one}) cannot be imported: {_cause(error)}; {cure}"
        raise ConfigError(message) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C comes once an import is done: half of torch imported fails much later, as something else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
