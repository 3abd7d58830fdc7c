"""`lock.json`: everything that a run's numbers depend on, its pipeline included, and what has changed in it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType
from typing import Any

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from rlalign.errors import ConfigError, concealed
from rlalign.packages import while_installed
from rlalign.records.files import read_json

CODE = {".py", ".json", ".safetensors"}
"""The files of an installed package whose content can change a number."""

_EDITED = re.compile(r"^pipeline\.(.+?): .* then, (.*) now$", re.DOTALL)
_NOT_CONTENTS = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__"),
}

APART = ("changes", "checksum")
"""What a lock says of the changes of a run: nothing that a number depends on."""


class _Value(BaseModel):
    key: str
    was: Any = Field(alias="from")
    now: Any = Field(alias="to")


class _Change(BaseModel):
    checkpoint: int | None
    lock: str
    values: list[_Value]
    inexact: list[str]


class _Plugin(BaseModel):
    version: str | None
    code: str | None


class _Device(BaseModel):
    name: str
    model: str


class _Lock(BaseModel):
    plugins: dict[str, Any]
    given: dict[str, dict[str, Any]]
    data: dict[str, Any]
    models: dict[str, str]
    seed: int
    budgets: dict[str, Any]
    environment: dict[str, str]
    world: dict[str, Any] = {}
    changes: list[_Change] = []


class _Provenance(_Lock):
    """What an exported model says of itself, too."""

    python: str
    packages: dict[str, str]
    plugins: dict[str, _Plugin]
    device: _Device
    dtype: str


def read_lock(path: Path, *, provenance: bool = False) -> dict[str, Any]:
    """What `lock.json` says; with `provenance` all that a model card tells of it must be there."""
    lock: dict[str, Any] = read_json(
        path,
        _Provenance if provenance else _Lock,
        f"Put it back, or go on without comparing anything: `rlalign run --resume {path.parent} --inexact`.",
    )
    return lock


def make_lock(
    *,
    seed: int,
    deterministic: bool,
    pipeline: Mapping[str, Any] = MappingProxyType({}),
    distributions: Iterable[str],
    modules: Iterable[str] = (),
    given: Mapping[str, type[Any]] = MappingProxyType({}),
    data: Mapping[str, str],
    models: Mapping[str, str],
    samplers: Mapping[str, str] = MappingProxyType({}),
    device: str,
    dtype: str,
    threads: int,
    budgets: Mapping[str, Any],
    environment: Mapping[str, str] = MappingProxyType({}),
    attention: str | None = None,
    world: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The lock as plain JSON values.

    `pipeline` is what pipeline.yaml says, so that an edit of that file is told value by value.
    `distributions` are those whose components the pipeline names (rlalign is added), `modules` those that
    no distribution offers, `given` the classes that were handed in from Python, `data` and `models` fingerprints
    by name, `samplers` what a resumed run repeats of each, `environment` the variables that the pipeline reads,
    sealed. `budgets` are found during a run: to compare, give the old lock's own. `world`: the processes, where
    they are several.
    """
    plugins = sorted({"rlalign", *distributions})
    versions = _versions(*plugins)
    return {
        "pipeline": dict(pipeline),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name, found in versions.items() if found and name not in plugins},
        "plugins": {name: {"version": versions[name], "code": code_hash(name)} for name in plugins},
        "modules": {name: found for name in sorted(set(modules)) if (found := _hash([name]))},
        "given": {
            name: {"class": f"{cls.__module__}:{cls.__qualname__}", "code": class_hash(cls)}
            for name, cls in sorted(given.items())
        },
        "data": {name: concealed(found) for name, found in sorted(data.items())},
        "models": dict(sorted(models.items())),
        "samplers": dict(samplers),
        "seed": seed,
        "deterministic": deterministic,
        "device": {"name": device, "model": _device_model(device)},
        "dtype": dtype,
        "threads": threads,
        "attention": attention,
        "budgets": dict(budgets),
        "environment": dict(environment),
        **({"world": dict(world)} if world else {}),
    }


def processes(lock: Mapping[str, Any]) -> int:
    """How many share the run."""
    return int(lock.get("world", {}).get("processes", 1))


def seal(value: str | None, like: str | None = None) -> str:
    """A variable of the environment as it may be written down: a hash, slow to guess, with a salt or that of `like`."""
    if value is None:
        return "unset"
    salt = like[-16:] if like and like != "unset" else os.urandom(8).hex()
    digest = hashlib.scrypt(os.fsencode(value), salt=salt.encode(), n=2**14, r=8, p=1, dklen=16)
    return digest.hex() + salt


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each value that changed, appeared or went."""
    old, new = ({key: value for key, value in lock.items() if key not in APART} for lock in (old, new))
    return [f"{key}: {_shown(was)} then, {_shown(now)} now" for key, was, now in changed_values(old, new)]


def changed_values(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Each value that changed, appeared or went: its key, what it was, and what it is; None where it is not."""
    then, now = dict(_leaves(old)), dict(_leaves(new))
    changed = [place for place in {**then, **now} if then.get(place) != now.get(place)]
    return [(place, then.get(place), now.get(place)) for place in changed]


def refuse_changed(changed: Sequence[str], run: str) -> None:
    """Stop before a resumed run would silently become a different one. `changed`: a line for each thing."""
    if not changed:
        return
    ways, edits = "Put it back", [pair for line in changed for pair in _EDITED.findall(line)]
    if edits:
        said = " ".join(shlex.quote(f"{key}={'null' if now == 'nothing' else now}") for key, now in edits)
        ways = (
            "Put it back; a change of pipeline.yaml is said on the command line instead: "
            f"`rlalign run --resume {run} {said}`"
        )
    raise ConfigError(
        f"{run}: not everything is as it was when the run began, so it would not go on exactly:\n"
        + "".join(f"  {line}\n" for line in changed)
        + f"{ways}, or accept the difference: `rlalign run --resume {run} --inexact`."
    )


def merged(old: Any, was: Any, now: Any) -> Any:
    """`old` with every value that differs between `was` and `now` as it is in `now`; None where it is not.

    What `old` does not have, and is the same in both, it still does not have.
    """
    if not all(isinstance(part, Mapping) for part in (old, was, now)):
        return old if was == now else now
    keys = [*old, *(key for key in now if key not in old and was.get(key) != now[key])]
    parts = {key: merged(old.get(key), was.get(key), now.get(key)) for key in keys}
    return {key: part for key, part in parts.items() if part is not None or key in now}


def code_hash(distribution: str) -> str | None:
    """A hash over the code and data that importing a distribution's modules would use.

    Modules are looked up where Python finds them, not in the distribution's list of files: an editable
    install lists none of its sources.
    """
    return _hash(_modules(distribution))


def class_hash(cls: type[Any]) -> str:
    """A hash over the methods, options and plain attributes of a class, and of its bases in the same module.

    Of the compiled code, since a class of a notebook has no file. What its methods call elsewhere is not in it.
    """
    own = [part for part in cls.__mro__ if part.__module__ == cls.__module__]
    seen: set[type[Any]] = set()
    return hashlib.sha256(repr([_contents(part, cls.__module__, seen) for part in own]).encode()).hexdigest()


def _contents(value: Any, module: str, seen: set[type[Any]]) -> Any:
    """What decides how a part of a class behaves, the same in every process."""

    def inside(part: Any) -> Any:
        return _contents(part, module, seen)

    if isinstance(value, type):
        if value in seen or value.__module__ != module:
            return f"{value.__module__}:{value.__qualname__}"
        seen.add(value)
        parts = {name: part for name, part in sorted(vars(value).items()) if name not in _NOT_CONTENTS}
        if issubclass(value, BaseModel):
            parts = {name: part for name, part in parts.items() if isinstance(part, FunctionType)}
            parts |= {f"field {name}": _field(field) for name, field in value.model_fields.items()}
        return inside(parts)
    if isinstance(value, CodeType):
        return (value.co_code, value.co_names, value.co_varnames, inside(value.co_consts))
    if isinstance(value, Mapping):
        return [(str(key), inside(part)) for key, part in value.items()]
    if isinstance(value, tuple | list):
        return [inside(part) for part in value]
    if isinstance(value, frozenset | set):
        return sorted(repr(inside(part)) for part in value)
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return value
    function = getattr(value, "__func__", getattr(value, "fget", value))  # of a static method, of a property
    if isinstance(function, FunctionType):
        return (inside(function.__code__), inside(function.__defaults__), inside(function.__kwdefaults__))
    return type(value).__name__


def _field(field: FieldInfo) -> Any:
    limits = [re.sub(r" at 0x[0-9a-f]+", "", repr(limit)) for limit in field.metadata]
    return [str(field.annotation), field.default, field.default_factory, limits]


def _hash(modules: Iterable[str]) -> str | None:
    digest = hashlib.sha256()
    found = False
    for module in modules:
        for name, path in _files(module):
            found = True
            about = os.stat(path)
            content = _content(path, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            digest.update(f"{module} {name} {content}\n".encode())
    return digest.hexdigest() if found else None


@cache
def _content(path: str, *about: int) -> str:
    """A hash over a file that is as it was: by `about`, what the file system says of it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@while_installed
def _modules(distribution: str) -> list[str]:
    """Top-level modules: those its entry points name, else the one named as it is."""
    try:
        points = importlib.metadata.distribution(distribution).entry_points.select(group="rlalign")
    except importlib.metadata.PackageNotFoundError:
        points = importlib.metadata.EntryPoints()
    return sorted({point.module.partition(".")[0] for point in points}) or [distribution.replace("-", "_")]


def _files(module: str) -> list[tuple[str, str]]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [(os.path.basename(spec.origin), spec.origin)] if spec.origin else []
    return sorted(found for root in spec.submodule_search_locations for found in _below(root))


def _below(root: str) -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.splitext(name)[1] in CODE and os.path.isfile(path):
                yield path[len(root) :].lstrip(os.sep).replace(os.sep, "/"), path


@while_installed
def _versions(*distributions: str) -> dict[str, str | None]:
    """Those of the distributions, and of what they require."""
    required = {needed for one in distributions for needed in _requirements(one)}
    return {name: _version(name) for name in sorted({*distributions, *required})}


def _requirements(distribution: str) -> Iterator[str]:
    """The distribution's direct dependencies, optional ones left out."""
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        if name and not re.search(r";.*\bextra\b", requirement):
            yield re.sub(r"[-_.]+", "-", name[0]).lower()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_model(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return device
    # Which vector instructions the kernels use decides the bits, as much as the processor does.
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    try:
        described = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        described = ""
    name = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{place}[{i}]")
    else:
        yield place, value


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{32,}", text) else text
