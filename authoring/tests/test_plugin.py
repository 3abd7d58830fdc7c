"""A new plugin of each kind: it is complete, reads well, passes its own tests and checks, and its pipeline runs."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.records import logs
from rlalign.running import loop
from rlalign.testing.bench import Silence
from rlalign_authoring.command import KINDS, new

ROOT = Path(__file__).resolve().parents[2]
RISES = {
    "reward": "eval/my-reward",
    "metric": "eval/increasing-numbers",
    "algorithm": "eval/increasing-numbers",
    "task": "eval/exact-match",
    "environment": "eval/played",
    "policy": "eval/increasing-numbers",
}
"""What the pipeline of each kind learns."""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(new, [str(a) for a in arguments])


def component(folder: Path) -> tuple[str, str]:
    """The entry point of a plugin: name, and `module:Class`."""
    about = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    [found] = about["entry-points"]["rlalign"].items()
    return str(found[0]), str(found[1])


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, side by side."""
    home = tmp_path_factory.mktemp("plugins")
    made = {kind: home / f"rlalign-plugin-my-{kind}" for kind in KINDS}
    for kind, folder in made.items():
        done = call("plugin", f"my-{kind}", "--kind", kind, "--to", folder)
        assert done.exit_code == 0, done.output
        assert f"cd {folder}" in done.output
    return made


@pytest.fixture
def registry(plugins: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Knows them all, as if they were installed."""
    classes = {}
    for folder in plugins.values():
        monkeypatch.syspath_prepend(str(folder / "src"))
        name, value = component(folder)
        module, _, cls = value.partition(":")
        classes[name] = getattr(importlib.import_module(module), cls)
    return Registry(classes, trust=True)


@pytest.fixture
def installed(plugins: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    """An environment of a new process in which they are installed."""
    paths = [str(tmp_path / "site"), *(str(folder / "src") for folder in plugins.values())]
    for folder in plugins.values():
        info = tmp_path / "site" / f"{folder.name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[rlalign]\n{} = {}\n".format(*component(folder)))
    there = filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *there])}


# -- what is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_complete(kind: str, plugins: dict[str, Path]) -> None:
    folder, module = plugins[kind], f"rlalign_plugin_my_{kind}"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - {path for path in files if "__pycache__" in path} == {
        ".github/workflows/test.yml",
        ".gitignore",
        "LICENSE",
        "README.md",
        "pipeline.yaml",
        "pyproject.toml",
        f"src/{module}/__init__.py",
        f"src/{module}/py.typed",
        "tests/conftest.py",
        f"tests/test_my_{kind}.py",
    }
    for path in (folder / one for one in files if "__pycache__" not in one):
        assert not re.search(r"[eE]xample[-_ ]?([nN]ame|kind)|\bRUN\b", path.read_text()), path
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    about = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    core = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["project"]["version"]
    major, minor, _ = core.split(".")
    bounds = f">={major}.{minor},<{major}.{int(minor) + 1}"
    assert about["name"] == folder.name
    assert about["dependencies"] == [f"rlalign{bounds}"]
    ours = [one for one in about["optional-dependencies"]["test"] if one.startswith("rlalign")]
    assert len(ours) > 1 and all(one.endswith(bounds) for one in ours)
    assert component(folder) == (f"my-{kind}", f"{module}:My{kind.capitalize()}")


@pytest.mark.parametrize("kind", KINDS)
def test_its_readme_says_what_it_is(kind: str, plugins: dict[str, Path], registry: Registry) -> None:
    text = (plugins[kind] / "README.md").read_text()
    assert text.startswith(f"# {plugins[kind].name}\n\n")
    assert re.findall(r"^## (.+)", text, re.MULTILINE) == ["Options", "Reproduced", "Paper"]
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    written = (plugins[kind] / "pipeline.yaml").read_text()
    assert written.startswith("# ")
    folder = plugins[kind]
    said = [
        load_pipeline(folder / "p.yaml", registry=registry, text=one).resolved for one in (shown, written)
    ]
    assert said[0] == said[1]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    fields = registry.load(f"my-{kind}").cls.Config.model_fields
    assert rows == [
        (name, "required" if one.is_required() else f"`{json.dumps(one.default)}`", one.description)
        for name, one in fields.items()
    ]


def test_they_pass_ruff(plugins: dict[str, Path]) -> None:
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [Path(sys.executable).with_name("ruff"), *command, "--no-cache", "."],
            cwd=plugins["reward"].parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_its_pipeline_runs(kind: str, plugins: dict[str, Path], registry: Registry, tmp_path: Path) -> None:
    """As far as a first iteration; the slow test runs it whole."""
    pipeline = load_pipeline(plugins[kind] / "pipeline.yaml", ["train.iterations=1"], registry=registry)
    finished = loop.start(pipeline, registry, root=tmp_path, display=Silence()).run()
    assert RISES[kind] in finished.metrics


def test_the_workflow_checks_what_is_there(plugins: dict[str, Path]) -> None:
    """Every package that it installs beside the plugin is one of the repository."""
    text = (plugins["task"] / ".github/workflows/test.yml").read_text()
    asked = re.findall(r"-e \./rlalign/(\S+)", text)
    names = [tomllib.loads((ROOT / one / "pyproject.toml").read_text())["project"]["name"] for one in asked]
    about = tomllib.loads((plugins["task"] / "pyproject.toml").read_text())["project"]
    assert sorted(names) == sorted(
        re.split(r"[\[>]", one)[0]
        for one in about["optional-dependencies"]["test"]
        if one.startswith("rlalign")
    )


# -- names -----------------------------------------------------------------------------------------------


def test_the_prefix_may_be_said(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    assert call("plugin", "rlalign-plugin-kindness", "--kind", "reward", "--to", folder).exit_code == 0
    assert component(folder) == ("kindness", "rlalign_plugin_kindness:Kindness")


def test_a_class_is_called_like_nothing_that_the_module_uses(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    assert call("plugin", "score", "--kind", "reward", "--to", folder).exit_code == 0
    assert component(folder) == ("score", "rlalign_plugin_score:ScoreReward")


@pytest.mark.parametrize(
    "name, hint",
    [
        ("My_Reward", "`my-reward`"),
        ("VowelCount", "`vowel-count`"),
        ("vowels!", "`vowels`"),
        ("2nd", "`nd`"),
        ("a--b", "`a-b`"),
        ("../up", "`up`"),
        ("x" * 41, "40 characters"),
        ("kl", "rlalign 0.1.0; choose another"),
        ("rlalign-plugin-rloo", "rlalign-plugin-reinforce"),
        ("hf", "`rlalign-plugin-hf` is installed already"),
    ],
)
def test_a_name_that_will_not_do_is_refused(name: str, hint: str, tmp_path: Path) -> None:
    done = call("plugin", name, "--kind", "reward", "--to", tmp_path / "here")
    assert done.exit_code == 2 and hint in done.output
    assert not (tmp_path / "here").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    done = call("plugin", "mine", "--kind", "task", "--to", tmp_path)
    assert done.exit_code == 2 and f"{tmp_path}: exists" in done.output
    assert list(tmp_path.iterdir()) == []


# -- what takes long ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_they_pass_their_own_tests(plugins: dict[str, Path], installed: dict[str, str]) -> None:
    tests = [str(folder / "tests") for folder in plugins.values()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        *tests,
    ]
    done = subprocess.run(
        command, cwd=plugins["task"].parent, env=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_they_pass_mypy(plugins: dict[str, Path], installed: dict[str, str], tmp_path: Path) -> None:
    """With the settings that each brings; one cache, as most of it is torch."""
    for folder in plugins.values():
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache")]
        done = subprocess.run(command, cwd=folder, env=installed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_pipeline_learns(kind: str, plugins: dict[str, Path], installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "rlalign.cli", "run", "pipeline.yaml", "--plain"]
    done = subprocess.run(
        command, cwd=plugins[kind], env=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = list(logs.read(plugins[kind] / "runs/pipeline/metrics.jsonl"))
    first, *_, last = [row for row in rows if "eval/responses" in row]
    assert last[RISES[kind]] > first[RISES[kind]] + 0.2
