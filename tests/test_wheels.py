"""What `pip install` gives: every wheel is built, opened, installed away from the repository, and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    ROOT / "core",
    ROOT / "study",
    ROOT / "humaneval",
    ROOT / "report",
    ROOT / "bench",
    *sorted(p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml")),
    *sorted(p.parent for p in ROOT.glob("examples/plugins/*/pyproject.toml")),
]
LEFT_OUT = shutil.ignore_patterns("__pycache__", "runs", "dist", "build", "*.egg-info")


def project(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[Path, Path]:
    """Every package's wheel, built from a copy: nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    for package in PACKAGES:
        source = folder / "sources" / package.name
        shutil.copytree(package, source, ignore=LEFT_OUT)
        out = folder / "dist" / package.name
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (built[package],) = out.glob("*.whl")
    return built


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_wheel_holds_everything(package, wheels):
    about = project(package)
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = set(wheel.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        points = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    source = package / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(info)} == files
    assert any(name.endswith("/py.typed") for name in files)
    assert f"{info}/licenses/LICENSE" in names
    for name, value in (pair for group in about["entry-points"].values() for pair in group.items()):
        assert f"{name} = {value}" in points
    assert metadata["Name"] == about["name"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload().strip() == (package / "README.md").read_text().strip()


def test_wheels_work_away_from_the_repository(wheels, tmp_path):
    """An empty environment, wheels of the toys and the example plugin, and a whole run of each pipeline.

    The libraries are those of this environment, by a .pth file; of the packages themselves it holds
    editable installs, so those are kept out of sight.
    """
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin/python"
    lines = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    site = Path(lines.stdout.strip())
    for wheel in wheels.values():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*install, "--target", str(site), "--upgrade", str(wheel)], check=True)
    borrow_libraries(site, tmp_path / "libraries")

    work = tmp_path / "work"
    work.mkdir()
    for example in ("bandit.yaml", "toy-numbers.yaml", "grow-improve.yaml"):
        shutil.copy(ROOT / "examples" / example, work)
    shutil.copy(ROOT / "examples/plugins/rlalign-plugin-vowels/pipeline.yaml", work / "vowels.yaml")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(python), *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import rlalign, rlalign_plugin_vowels as v; print(rlalign.__file__, v.__file__)")
    assert all(Path(p).resolve().is_relative_to(site.resolve()) for p in where.split())
    listed = run("-m", "rlalign.cli", "plugins", "--check")
    for package in PACKAGES:
        for name in project(package)["entry-points"].get("rlalign", {}):
            assert f"\n  {name} " in listed
    for example in sorted(work.glob("*.yaml")):
        run("-m", "rlalign.cli", "run", example.name, "--plain")
        assert (work / "runs" / example.stem / "model/model.safetensors").is_file()


def borrow_libraries(site: Path, folder: Path) -> None:
    """Make the installed libraries importable from `site`, but not this repository's packages."""
    folder.mkdir()
    for entry in sys.path:
        if Path(entry).name not in ("site-packages", "dist-packages"):
            continue
        for item in Path(entry).iterdir():
            if "rlalign" not in item.name.lower() and item.suffix != ".pth":
                link = folder / item.name
                if not link.exists():
                    link.symlink_to(item)
    (site / "libraries.pth").write_text(f"{folder}\n")
