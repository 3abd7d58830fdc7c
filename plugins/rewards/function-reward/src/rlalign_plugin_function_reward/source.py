"""Finds a user's function, says what is wrong with it before anything runs, and loads it."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from rlalign import Code, ConfigError, RunsCode
from rlalign.errors import said_by


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


def locate(path: Path) -> Code:
    """Raises ValueError where there is no such file, module or function. Imports nothing."""
    place, colon, function = str(path).rpartition(":")
    if not colon or "/" in function:
        file = path if path.suffix == ".py" else None
        names = [name for name, _ in _code(file, "").bound] if file and file.is_file() else []
        listed = f" (it has {', '.join(dict.fromkeys(names))})" if names else ""
        raise ValueError(
            f"expected `my_rewards.py:score` or `package.module:score`; say which function{listed}"
        )
    where = Path(place)
    if where.suffix == ".py":
        if not where.is_file():
            raise ValueError(f"{where}: there is no such file{_near_file(where)}")
        return _there(_code(where, function))
    found = Code.find(where.name, function, where.parent)
    if found is None:
        hint = f"; for a file write `{where.name}.py:{function}`" if "." not in where.name else ""
        raise ValueError(f"`{where.name}` is no module that Python finds, nor in {where.parent}{hint}")
    return _there(found)


def _code(file: Path, function: str) -> Code:
    return Code(file.stem, function, file.parent, file, by_path=True)


def _there(source: Code) -> Code:
    if source.is_absent():
        raise ValueError(source.absence("function "))
    return source


def _near_file(where: Path) -> str:
    if not where.parent.is_dir():
        return ", nor its folder"
    there = sorted(p.name for p in where.parent.glob("*.py"))
    close = get_close_matches(where.name, there, 1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _exists(path: Path) -> Path:
    locate(path)
    return path


FunctionPath = Annotated[Path, Field(strict=False), RunsCode, AfterValidator(_exists)]
"""An option that names a function: `my_rewards.py:score`, or `package.module:score`."""


def digest(source: Code, further: Sequence[Path]) -> str:
    """A hash of the function's file and of further files it depends on."""
    hashed = hashlib.sha256()
    for file in ([source.file] if source.file else []) + list(further):
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()


def asked_in(source: Code) -> Asked | None:
    """The function's parameters as its file says; None where only running it tells."""
    if source.file is None:
        return None
    named = [
        node
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == source.name
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


def load(source: Code, digest: str) -> Callable[..., Any]:
    """Import the function's module; its folder is on `sys.path` during that one import only."""
    try:
        function = source.load("function ", digest)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{source}: importing it raised {tail(error, source)}") from error
    if inspect.isclass(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"a {type(function).__name__}"
        raise ConfigError(f"{source}: is {what}; name a function, or an object that can be called")
    found: Callable[..., Any] = function
    return found


def digests(paths: Sequence[Path | None]) -> str:
    """A hash of the files of several functions, of which some are not given."""
    each = [digest(locate(path), ()) if path else "" for path in paths]
    return hashlib.sha256(" ".join(each).encode()).hexdigest()


def named(path: Path) -> Callable[..., Any]:
    """The function that such an option names."""
    source = locate(path)
    return load(source, digest(source, ()))


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


def tail(error: BaseException, source: Code) -> str:
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
