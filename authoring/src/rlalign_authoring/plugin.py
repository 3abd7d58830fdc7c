"""A new plugin: the files of `templates/`, under another name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from rlalign.config.registry import installed
from rlalign.errors import ConfigError

PREFIX = "rlalign-plugin-"
LONGEST = 40


@dataclass(frozen=True)
class Name:
    """What a component is called, and how that is written where a hyphen is none."""

    component: str
    kind: str

    @property
    def distribution(self) -> str:
        return PREFIX + self.component

    @property
    def cls(self) -> str:
        """`my-reward` is `MyReward`; a name that the templates use for something else has its kind behind it."""
        found = "".join(part.capitalize() for part in self.component.split("-"))
        used = any(
            re.search(rf"\b{found}\b", text) for path, text in _templates(self.kind) if path.endswith(".py")
        )
        return found + self.kind.capitalize() if used else found

    def put(self, text: str) -> str:
        """A template, or the path of one, with this name in place of the example's."""
        for example, own in (
            ("example-kind", self.kind),
            ("example-name", self.component),
            ("example_name", self.component.replace("-", "_")),
            ("ExampleName", self.cls),
        ):
            text = text.replace(example, own)
        return text


def named(said: str, kind: str) -> Name:
    """The name that was asked for, `rlalign-plugin-` before it or not; ConfigError where it will not do."""
    component = said.removeprefix(PREFIX)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", component) or len(component) > LONGEST:
        likely = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", component).lower()).strip(
            "-"
        )
        likely = re.sub(r"^[0-9-]+", "", likely)[:LONGEST].rstrip("-")
        hint = f"; for instance `{likely}`" if likely else ""
        raise ConfigError(
            f"{said!r}: a name is lower-case letters, digits and single hyphens, begins with a letter and has at most "
            f"{LONGEST} characters: it becomes a package on PyPI, a Python module and a word in pipelines{hint}"
        )
    for other in installed():
        if other.name == component:
            raise ConfigError(
                f"`{component}` is the name of a component that is installed already, of {other}; choose another, so "
                "that pipelines need not say whose they mean"
            )
    name = Name(component, kind)
    if any(_canonical(found.metadata["Name"] or "") == name.distribution for found in distributions()):
        raise ConfigError(f"a package `{name.distribution}` is installed already; choose another name")
    return name


def write(name: Name, folder: Path) -> list[Path]:
    """Write the plugin into a new folder; gives the files, as paths within it."""
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: exists; choose another folder with --to, or move it away")
    written = []
    for path, text in _templates(name.kind):
        within = Path(*(re.sub(r"^dot-", ".", part) for part in name.put(path).split("/")))
        (folder / within).parent.mkdir(parents=True, exist_ok=True)
        (folder / within).write_text(name.put(text), encoding="utf-8")
        written.append(within)
    return sorted(written)


def _templates(kind: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each file: those of all kinds, and of this one."""
    for part in ("common", kind):
        yield from _under(files("rlalign_authoring") / "templates" / part, "")


def _under(folder: Traversable, above: str) -> Iterator[tuple[str, str]]:
    for one in sorted(folder.iterdir(), key=lambda found: found.name):
        if one.name == "__pycache__":
            continue
        if one.is_dir():
            yield from _under(one, f"{above}{one.name}/")
        else:
            yield above + one.name, one.read_text(encoding="utf-8")


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
