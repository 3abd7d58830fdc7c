"""Builds the packages' wheels and sources from copies, and says what is wrong with one. Tests use it, too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    *sorted(p.parent for p in ROOT.glob("*/pyproject.toml")),
    *sorted(p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml")),
]
LEFT_OUT = shutil.ignore_patterns("__pycache__", "runs", "dist", "build", "*.egg-info")
_STRAY = re.compile(
    r"(^|/)(__pycache__|\.\w[^/]*cache|runs|dist|build|[^/]+\.egg-info|\.DS_Store)(/|$)|\.pyc$"
)
_BUILT = {"PKG-INFO", ".gitignore"}
"""Files that are in the archive of sources and not in the folder."""


class Fault(Exception):
    """What stands in the way of a release."""


def project(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    return found


def build(package: Path, folder: Path, *, sdist: bool = False) -> list[Path]:
    """Its wheel, and before it the archive of sources: from a copy, so that nothing is left in the repository."""
    source, out = folder / "sources" / package.name, folder / "dist" / package.name
    shutil.copytree(package, source, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    command += ["--wheel"] if not sdist else []  # else of the sources' archive
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fault(f"{package.name} cannot be built:\n{done.stdout}{done.stderr}")
    return sorted(out.iterdir())


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(opened.read(name).decode())


def wrong_with_wheel(wheel: Path, package: Path) -> Iterator[str]:
    """It holds the package's sources and nothing else, and says of itself what pyproject.toml does."""
    about = project(package)
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        points = (
            opened.read(f"{info}/entry_points.txt").decode() if f"{info}/entry_points.txt" in names else ""
        )
    metadata, source = metadata_of(wheel), package / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {name for name in names if not name.startswith(info)}
    for what, several in (("lacks", files - there), ("holds what is no source:", there - files)):
        if several:
            yield f"{wheel.name}: {what} {', '.join(sorted(several)[:5])}"
    if not any(name.endswith("/py.typed") for name in names):
        yield f"{wheel.name}: no py.typed"
    if f"{info}/licenses/LICENSE" not in names:
        yield f"{wheel.name}: no LICENSE"
    for group in (about.get("scripts", {}), *about.get("entry-points", {}).values()):
        for name, value in group.items():
            if f"{name} = {value}" not in points:
                yield f"{wheel.name}: its entry points lack {name} = {value}"
    said = {"Name": about["name"], "Version": about["version"], "License-Expression": about["license"]}
    for key, value in said.items():
        if metadata[key] != value:
            yield f"{wheel.name}: {key} is {metadata[key]}, expected {value}"
    if str(metadata.get_payload()).strip() != (package / "README.md").read_text().strip():
        yield f"{wheel.name}: its description is not README.md"


def wrong_with_sources(archive: Path, package: Path) -> Iterator[str]:
    """The archive holds files of the package's folder, all that are built of it, and none that running left there."""
    with tarfile.open(archive) as opened:
        names = {name.name.partition("/")[2] for name in opened.getmembers() if name.isfile()}
    needed = {path.relative_to(package).as_posix() for path in (package / "src").rglob("*.py")}
    needed |= {"pyproject.toml", "README.md", "LICENSE"}
    if lacking := needed - names:
        yield f"{archive.name}: lacks {', '.join(sorted(lacking)[:5])}"
    stray = {name for name in names if _STRAY.search(name)}
    stray |= {name for name in names - _BUILT if not (package / name).is_file()}
    if stray:
        yield f"{archive.name}: holds {', '.join(sorted(stray)[:5])}"
