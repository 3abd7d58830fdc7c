"""Finds a user's function, says what is wrong with it before anything runs, and loads it."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from rlalign import ConfigError
from rlalign.errors import said_by


@dataclass(frozen=True)
class Source:
    """`my_rewards.py:score` or `package.module:score`. `file` is None for a module without source."""

    folder: Path
    module: str
    function: str
    file: Path | None
    by_path: bool
    """Named as a file rather than as a module."""

    def __str__(self) -> str:
        return f"{self.file.name if self.by_path and self.file else self.module}:{self.function}"


@dataclass(frozen=True)
class Asked:
    """The parameters of a function."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    any_keyword: bool
    positional_only: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.required + self.optional


def locate(path: Path) -> Source:
    """Raises ValueError where there is no such file, module or function. Imports nothing."""
    place, colon, function = str(path).rpartition(":")
    if not colon or "/" in function:
        file = path if path.suffix == ".py" else None
        listed = f" (it has {', '.join(_names(file))})" if file and file.is_file() else ""
        raise ValueError(
            f"expected `my_rewards.py:score` or `package.module:score`; say which function{listed}"
        )
    where = Path(place)
    if where.suffix == ".py":
        if not where.is_file():
            raise ValueError(f"{where}: there is no such file{_near_file(where)}")
        source = Source(where.parent, where.stem, function, where, by_path=True)
    else:
        found = _find(where.name, where.parent)
        if found is None:
            hint = f"; for a file write `{where.name}.py:{function}`" if "." not in where.name else ""
            raise ValueError(f"`{where.name}` is no module that Python finds, nor in {where.parent}{hint}")
        file = Path(found.origin) if found.origin and found.origin.endswith(".py") else None
        source = Source(where.parent, where.name, function, file, by_path=False)
    if source.file is not None:
        names = _names(source.file)
        if function not in names and "*" not in names and "__getattr__" not in names:
            raise ValueError(f"{_called(source)} has no function `{function}`{_near(function, names)}")
    return source


def _called(source: Source) -> str:
    return source.file.name if source.by_path and source.file else f"the module `{source.module}`"


def _near(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, list(known), 1)
    shown = f" (it has {', '.join(n for n in known if not n.startswith('_'))})" if known else ""
    return (f"; did you mean `{close[0]}`?" if close else "") + shown


def _near_file(where: Path) -> str:
    if not where.parent.is_dir():
        return ", nor its folder"
    there = sorted(p.name for p in where.parent.glob("*.py"))
    close = get_close_matches(where.name, there, 1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _find(name: str, folder: Path) -> ModuleSpec | None:
    """A module's place, without importing it or the packages it is in."""
    place: Sequence[str] | None = None
    spec = None
    with _on_path(folder):
        for depth in range(1, name.count(".") + 2):
            part = ".".join(name.split(".")[:depth])
            spec = next((s for f in sys.meta_path if (s := f.find_spec(part, place)) is not None), None)
            if spec is None:
                return None
            place = spec.submodule_search_locations
            if place is None and part != name:
                return None
    return spec


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def digest(source: Source, further: Sequence[Path]) -> str:
    """A hash of the function's file and of further files it depends on."""
    hashed = hashlib.sha256()
    for file in ([source.file] if source.file else []) + list(further):
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()


# -- what a file says, unread by Python ---------------------------------------------------------------


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=file.name)
    except SyntaxError as error:
        raise ValueError(f"{file.name}:{error.lineno}: not valid Python: {error.msg}") from None
    except ValueError as error:  # a NUL byte
        raise ValueError(f"{file.name}: not valid Python: {error}") from None


def _names(file: Path) -> list[str]:
    """What a module defines; `*` where it takes all that another one has."""
    return list(dict.fromkeys(_defined(_tree(file).body)))


def _defined(body: Sequence[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.For | ast.With):
            yield from (
                n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            )
        for field in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With | ast.For):
                yield from _defined(getattr(node, field, []))
        for handler in node.handlers if isinstance(node, ast.Try) else ():
            yield from _defined(handler.body)


def asked_in(source: Source) -> Asked | None:
    """The function's parameters as its file says; None where only running it tells."""
    if source.file is None:
        return None
    named = [
        node
        for node in _tree(source.file).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == source.function
    ]
    if len(named) != 1 or named[0].decorator_list:
        return None
    a = named[0].args
    plain = [p.arg for p in a.args]
    defaults = len(a.defaults)
    split = max(0, len(plain) - defaults)
    keyword = [(p.arg, d is not None) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    return Asked(
        required=(*plain[:split], *(name for name, has in keyword if not has)),
        optional=(*plain[split:], *(name for name, has in keyword if has)),
        any_keyword=a.kwarg is not None,
        positional_only=tuple(p.arg for p in a.posonlyargs),
    )


# -- running it ------------------------------------------------------------------------------------------


def load(source: Source, digest: str) -> Callable[..., Any]:
    """Import the function's module; its folder is on `sys.path` during that one import only."""
    with _on_path(source.folder):
        try:
            module = (
                _import_file(source, digest) if source.by_path else importlib.import_module(source.module)
            )
        except Exception as error:
            raise ConfigError(f"{source}: importing it raised {tail(error, source)}") from error
    used = getattr(module, "__file__", None)
    if source.file is not None and used and not source.file.samefile(used):
        raise ConfigError(f"{source}: Python has `{source.module}` from {used} already; rename {source.file}")
    if not hasattr(module, source.function):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(
            f"{_called(source)} has no function `{source.function}`{_near(source.function, names)}"
        )
    function = getattr(module, source.function)
    if inspect.isclass(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"a {type(function).__name__}"
        raise ConfigError(f"{source}: is {what}; name a function, or an object that can be called")
    found: Callable[..., Any] = function
    return found


def _import_file(source: Source, digest: str) -> Any:
    assert source.file is not None
    # By place and contents: files of one name, or one file changed, are different modules.
    key = hashlib.sha256(f"{source.file} {digest}".encode()).hexdigest()
    name = f"rlalign_function_{source.module}_{key[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, source.file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def asked_by(function: Callable[..., Any]) -> Asked:
    """The parameters of a loaded function; of one that hides them, any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return Asked((), (), any_keyword=True)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in parameters if p.kind in by_name]
    return Asked(
        required=tuple(p.name for p in named if p.default is p.empty),
        optional=tuple(p.name for p in named if p.default is not p.empty),
        any_keyword=any(p.kind is p.VAR_KEYWORD for p in parameters),
        positional_only=tuple(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY),
    )


def tail(error: BaseException, source: Source) -> str:
    """`KeyError: 'x' at my_rewards.py:12, in score: weights[word]`: the last line that is the user's own."""
    said = f"{type(error).__name__}: {said_by(error)}"
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        return f"{said} at {Path(error.filename or '').name}:{error.lineno}"
    own = [(code, line) for code, line in frames if source.file and Path(code.co_filename) == source.file]
    if not own:
        own = [(code, line) for code, line in frames if not code.co_filename.startswith("<frozen")]
    if not own:
        return said
    code, line = own[-1]
    text = _line(Path(code.co_filename), line)
    inside = "" if code.co_name == "<module>" else f", in {code.co_name}"
    return f"{said} at {Path(code.co_filename).name}:{line}{inside}" + (f": `{text}`" if text else "")


def _line(file: Path, number: int) -> str:
    try:
        return file.read_text(errors="replace").splitlines()[number - 1].strip()
    except (OSError, IndexError):
        return ""
