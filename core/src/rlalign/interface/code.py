"""Python code that a pipeline names: found without running any of it, and run for those who trust its author only."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import AfterValidator, ValidationInfo

from rlalign.errors import ConfigError

ADD_TRUST = "add --trust (from Python trust=True) if you trust whoever wrote it"
_DYNAMIC = {"globals", "locals", "vars", "exec", "eval", "setattr", "modules", "__dict__"}
"""A module that mentions one of these may define what it does not spell out."""


def _trusted(value: Any, info: ValidationInfo) -> Any:
    if value and info.context and not info.context["trust"]:
        said = "true" if value is True else value
        raise ValueError(f"{said} would run code that no installed package offers; {ADD_TRUST}")
    return value


RunsCode = AfterValidator(_trusted)
"""Marks an option that makes foreign code run, `Annotated[Path, RunsCode]`: in a run or a model that somebody else
may have written it is refused unless that is trusted."""


@dataclass(frozen=True)
class Code:
    """`module:name`, or `file.py:name` if it goes by its path. `file` is None for a module without source."""

    module: str
    name: str
    folder: Path | None
    """Where its module is looked for first; on `sys.path` while it is imported, and no longer."""
    file: Path | None
    by_path: bool = False

    @classmethod
    def find(cls, module: str, name: str, folder: Path | None = None) -> Code | None:
        """The code of this name; None where Python finds no such module. Imports nothing."""
        spec = find_module(module, folder)
        if spec is None and module not in sys.modules:
            return None
        origin = spec.origin if spec else None
        return cls(module, name, folder, Path(origin) if origin and origin.endswith(".py") else None)

    def __str__(self) -> str:
        return f"{self.file.name if self.by_path and self.file else self.module}:{self.name}"

    @property
    def home(self) -> str:
        """What it is looked for in, for messages."""
        return self.file.name if self.by_path and self.file else f"the module `{self.module}`"

    # -- what its file says, unread by Python ---------------------------------------------------------

    @cached_property
    def tree(self) -> ast.Module:
        """The module's file. Raises ValueError where it is not Python."""
        if self.file is None:
            return ast.Module([], [])
        try:
            return ast.parse(self.file.read_bytes(), filename=self.file.name)
        except SyntaxError as error:
            raise ValueError(f"{self.file.name}:{error.lineno}: not valid Python: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError, OSError) as error:  # a NUL byte, nested too deep
            raise ValueError(f"{self.file.name}: not valid Python: {error or 'nested too deep'}") from None

    @cached_property
    def bound(self) -> list[tuple[str, ast.AST]]:
        """The names that the file's statements bind, in order; `*` for all that another module has."""
        return list(_bound(self.tree))

    def _spells_out(self) -> bool:
        """Whether reading the file tells all that it defines."""
        words = (getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(self.tree))
        return self.file is not None and "*" not in self._names() and _DYNAMIC.isdisjoint(words)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.bound))

    def is_absent(self) -> bool:
        """Whether the file plainly has no such name."""
        return not {self.name, "__getattr__"}.intersection(self._names()) and self._spells_out()

    def is_no_class(self) -> bool:
        """Whether the name plainly means something else there, or a class that derives from nothing."""
        found = [node for name, node in self.bound if name == self.name]
        return bool(found) and all(_is_no_class(node) for node in found) and self._spells_out()

    def absence(self, what: str = "", known: Collection[str] | None = None) -> str:
        """`mine.py has no function `scor`; did you mean `score`? (it has score, scale)`"""
        names = self._names() if known is None else known
        listed = ", ".join(name for name in names if not name.startswith("_"))
        close = get_close_matches(self.name, list(names), 1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        return f"{self.home} has no {what}`{self.name}`{hint}" + (f" (it has {listed})" if listed else "")

    # -- running it -----------------------------------------------------------------------------------

    def load(self, what: str = "", version: str = "") -> Any:
        """Import its module. What that raises passes as it is; a file of another version is another module."""
        self._refuse_stranger()
        with _on_path(self.folder):
            module = self._run_file(version) if self.by_path else importlib.import_module(self.module)
        if not hasattr(module, self.name):
            raise ConfigError(f"`{self}`: {self.absence(what, list(vars(module)))}")
        return getattr(module, self.name)

    def _refuse_stranger(self) -> None:
        """Two pipelines' folders may hold modules of one name; Python would go on using the first."""
        top = self.module.partition(".")[0]
        used = None if self.by_path else getattr(sys.modules.get(top), "__file__", None)
        for mine in (self.folder / f"{top}.py", self.folder / top / "__init__.py") if self.folder else ():
            if used and mine.is_file() and not mine.samefile(used):
                raise ConfigError(f"`{self}`: Python has `{top}` from {used} already; rename {mine}")

    def _run_file(self, version: str) -> ModuleType:
        assert self.file is not None
        # By place and version: files of one name, or one file changed, are different modules.
        key = hashlib.sha256(f"{self.file} {version}".encode()).hexdigest()
        name = f"rlalign_file_{self.module}_{key[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, self.file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def find_module(name: str, folder: Path | None = None) -> ModuleSpec | None:
    """A module's place, without importing it or the packages it is in."""
    spec, place = None, None
    parts = name.split(".")
    with _on_path(folder):
        for depth in range(1, len(parts) + 1):
            spec = _spec(".".join(parts[:depth]), place)
            place = None if spec is None else spec.submodule_search_locations
            if spec is None or (place is None and depth < len(parts)):
                return None
            place = getattr(
                place, "_path", place
            )  # of a namespace, which would ask its parent, not imported yet
    return spec


def _spec(name: str, place: Sequence[str] | None) -> ModuleSpec | None:
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    try:
        return next((spec for find in finders if find and (spec := find(name, place)) is not None), None)
    except KeyError:  # a folder without `__init__.py` in a package that is not imported yet
        folders = (Path(home) / name.rpartition(".")[2] for home in place or ())
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder) for folder in folders if folder.is_dir()]
        return spec
    except ValueError:  # no name that a file could have
        return None


_one_at_a_time = threading.RLock()
"""`sys.path` is one for all threads, and code that is imported may name more."""


@contextmanager
def _on_path(folder: Path | None) -> Iterator[None]:
    with _one_at_a_time:
        before = list(sys.path)
        if folder:
            sys.path.insert(0, str(folder))
            importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path[:] = before


def _bound(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    waiting: list[ast.AST] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        inner = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
            inner = []
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            outer = (part for part in ast.walk(node) if isinstance(part, ast.Global))
            yield from ((name, part) for part in outer for name in part.names)
            inner = list(node.decorator_list)
        elif (
            isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        ):
            yield node.targets[0].id, node.value
            inner = [node.value]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node
        for field in ("name", "rest"):  # `except … as name`, `case name`, `case {**rest}`
            if isinstance(name := getattr(node, field, None), str):
                yield name, node
        waiting += reversed(inner)


def _is_no_class(node: ast.AST) -> bool:
    if isinstance(node, ast.ClassDef):
        return not (node.bases or node.keywords or node.decorator_list)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return not node.decorator_list
    return isinstance(node, ast.Constant | ast.List | ast.Dict | ast.Tuple | ast.Set)
