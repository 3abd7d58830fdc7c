"""`make release`: builds, checks, installs and runs every package as users will get it. Nothing is uploaded.

Dry unless `--write`: then the changelog's section is written, and the files lie in `dist/`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.changelog import released
from release.wheels import (
    PACKAGES,
    ROOT,
    Fault,
    build,
    metadata_of,
    project,
    wrong_with_sources,
    wrong_with_wheel,
)

PYTHONS = ("3.11", "3.12", "3.13")
SMOKE = ("bandit.yaml", ["train.iterations=3"])
"""A pipeline that needs no model library, and makes every part of a run work."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make release ARGS=…", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the changelog's section and dist/")
    parser.add_argument("--python", action="append", metavar="3.x", help="on these only; as often as needed")
    parser.add_argument("--no-install", action="store_true", help="build and check; install nowhere")
    asked = parser.parse_args()
    try:
        release(asked.write, () if asked.no_install else asked.python or PYTHONS)
    except Fault as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    return 0


def release(write: bool, pythons: tuple[str, ...] | list[str]) -> None:
    version = project(ROOT / "core")["version"]
    log = ROOT / "CHANGELOG.md"
    text, section = released(log.read_text(), version, datetime.date.today().isoformat())
    print(
        f"{version}: {sum(line.startswith('- ') for line in section.splitlines())} entries in the changelog"
    )
    if write and _run(["git", "status", "--porcelain"], ROOT):
        raise Fault("the working tree has changes: commit them first")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        built = {package: build(package, folder, sdist=True) for package in PACKAGES}
        faults = [*_wrong_with_files(built), *_wrong_with_versions(built)]
        if faults:
            raise Fault("\n  ".join([f"{len(faults)} faults", *faults]))
        files = [file for several in built.values() for file in several]
        _run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], folder)
        print(f"{len(files)} files of {len(built)} packages: built and checked")
        wheels = [file for file in files if file.suffix == ".whl"]
        for found in pythons:
            _try(found, wheels, folder / f"on-{found}")
        if not write:
            print("nothing was written; `make release ARGS=--write` does")
            return
        (ROOT / "dist").mkdir(exist_ok=True)
        for file in files:
            shutil.copy(file, ROOT / "dist")
    log.write_text(text)
    print(f"dist/ and CHANGELOG.md are written; then: git commit, git tag v{version}")


def _wrong_with_files(built: Mapping[Path, list[Path]]) -> Iterator[str]:
    for package, files in built.items():
        for file in files:
            look = wrong_with_wheel if file.suffix == ".whl" else wrong_with_sources
            yield from look(file, package)


def _wrong_with_versions(built: Mapping[Path, list[Path]]) -> Iterator[str]:
    """What our packages require of each other is what is released."""
    found = [metadata_of(file) for files in built.values() for file in files if file.suffix == ".whl"]
    versions = {canonicalize_name(str(one["Name"])): str(one["Version"]) for one in found}
    for one in found:
        for requirement in map(Requirement, one.get_all("Requires-Dist") or []):
            there = versions.get(canonicalize_name(requirement.name))
            ours = requirement.name.startswith("rlalign")
            if ours and (there is None or not requirement.specifier.contains(there, prereleases=True)):
                yield f"{one['Name']} requires {requirement}, and {there or 'none'} is released"


def _try(version: str, wheels: list[Path], folder: Path) -> None:
    """All wheels in an empty environment of this Python, what the core requires, and a whole run."""
    python = _python(version)
    if python is None:
        print(f"Python {version}: not on this machine, so not tried")
        return
    _run([python, "-m", "venv", str(folder / "venv")], ROOT)
    inside = str(folder / "venv/bin/python")
    core = [str(wheel) for wheel in wheels if wheel.name.startswith("rlalign-")]
    install = [inside, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    _run([*install, *core], folder)
    _run([*install, "--no-deps", *(str(wheel) for wheel in wheels if str(wheel) not in core)], folder)
    name, changes = SMOKE
    shutil.copy(ROOT / "examples" / name, folder)
    listed = _run([inside, "-m", "rlalign", "plugins"], folder)
    for package in PACKAGES:
        for component in project(package).get("entry-points", {}).get("rlalign", {}):
            if f"\n  {component} " not in listed:
                raise Fault(f"Python {version}: `rlalign plugins` does not list {component}")
    _run([inside, "-m", "rlalign", "check", name], folder)
    _run([inside, "-m", "rlalign", "run", name, "--plain", *changes], folder)
    if not (folder / "runs" / Path(name).stem / "model/model.safetensors").is_file():
        raise Fault(f"Python {version}: {name} left no model")
    print(f"Python {version}: installed and run")


def _python(version: str) -> str | None:
    """An interpreter of this version: on the path, or one of pyenv's, the newest."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    several = sorted(
        pyenv.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].rpartition(".")[2])
    )
    candidates = [*map(str, reversed(several)), *filter(None, [shutil.which(f"python{version}")])]
    for one in candidates:
        done = subprocess.run([one, "-c", "import ensurepip, venv"], capture_output=True, check=False)
        if not done.returncode:
            return one
    return None


def _run(command: list[str], folder: Path) -> str:
    """What it prints; with nothing of this environment's."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fault(
            f"{' '.join(command[:6])} … ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
