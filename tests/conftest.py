"""The example plugins, there for a test as if they were installed; runs on two processes that nothing befalls."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def example_plugins(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders for sys.path: each plugin's sources, and the metadata that an install would write."""
    site = tmp_path_factory.mktemp("site")
    folders = [str(site)]
    for pyproject in sorted(ROOT.glob("examples/plugins/*/pyproject.toml")):
        project = tomllib.loads(pyproject.read_text())["project"]
        info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["rlalign"].items())
        (info / "entry_points.txt").write_text(f"[rlalign]\n{points}")
        folders.append(str(pyproject.parent / "src"))
    return folders


@pytest.fixture
def with_example_plugins(example_plugins: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The example plugins importable in this process; gives the environment for a new one."""
    monkeypatch.setattr(sys, "path", [*example_plugins, *sys.path])  # before an older one that is installed
    there = filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*example_plugins, *there])}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each process has all weights."""
    from commands import undisturbed

    return undisturbed("whole", tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each has its pieces."""
    from commands import undisturbed

    return undisturbed("cut", tmp_path_factory.mktemp("cut"))
