"""What holds of every package of the repository."""

from __future__ import annotations

import ast
import importlib.metadata
import math
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rlalign.config import clusters
from rlalign.config.outline import declared, outline, sentence
from rlalign.config.registry import Registry, kind
from rlalign.running.members import HOOKS

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml"))
EXAMPLES = sorted(p.parent for p in ROOT.glob("examples/plugins/*/pyproject.toml"))
COMMANDS = sorted(p.parent for p in ROOT.glob("*/pyproject.toml") if p.parent.name != "core")
PACKAGES = [ROOT / "core", *COMMANDS, *PLUGINS]
BOUNDS = "rlalign>=0.1,<0.2"


def named(package: Path) -> str:
    return package.relative_to(ROOT).as_posix()


def project(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    return found


def offers(package: Path) -> dict[str, str]:
    found: dict[str, str] = project(package).get("entry-points", {}).get("rlalign", {})
    return found


def clusters_of(package: Path) -> dict[str, str]:
    found: dict[str, str] = project(package).get("entry-points", {}).get(clusters.GROUP, {})
    return found


def every(packages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("package", packages, ids=named)


def test_there_are_packages():
    assert len(PLUGINS) >= 3


def test_every_folder_below_plugins_is_a_package():
    folders = {p for p in ROOT.glob("plugins/*/*") if p.is_dir() and any(p.rglob("*.py"))}
    assert folders == set(PLUGINS)


@every([*PLUGINS, *EXAMPLES])
def test_folder_distribution_and_module_have_one_name(package):
    name = package.name.removeprefix("rlalign-plugin-")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert project(package)["name"] == f"rlalign-plugin-{name}"
    module = f"rlalign_plugin_{name.replace('-', '_')}"
    assert [p.name for p in (package / "src").iterdir() if p.name != "__pycache__"] == [module]
    assert all(value.partition(":")[0].partition(".")[0] == module for value in offers(package).values())
    wheel = tomllib.loads((package / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert wheel["wheel"]["packages"] == [f"src/{module}"]


@every([*COMMANDS, *PLUGINS, *EXAMPLES])
def test_bounds(package):
    dependencies = project(package)["dependencies"]
    assert BOUNDS in dependencies
    for dependency in dependencies:
        if dependency.startswith("rlalign-"):
            assert re.search(r">=0\.\d+,<0\.\d+$", dependency), f"{dependency}: needs bounds"


def test_the_core_meets_the_bounds():
    assert project(ROOT / "core")["version"].startswith("0.1.")


@every([*PACKAGES, *EXAMPLES])
def test_common_fields(package):
    about = project(package)
    assert about["license"] == "Apache-2.0"
    assert about["readme"] == "README.md"
    assert about["requires-python"] == ">=3.11"
    assert about["description"] and not about["description"].endswith(".")
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for module in (package / "src").iterdir():
        if module.name != "__pycache__":
            assert (module / "py.typed").is_file()
    assert list(package.glob("tests/**/test_*.py")), "it has no tests"


def test_every_package_is_in_the_development_set_up():
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    editable = {line.partition("[")[0] for line in lines if line.startswith("-e")}  # extras apart
    assert editable == {f"-e ./{named(p)}" for p in PACKAGES}
    assert "-c constraints.txt" in lines


def test_what_is_set_up_with_extras_comes_before_those_that_need_it():
    """pip looks for it on its index otherwise."""
    lines = [
        line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line.startswith("-e")
    ]
    needed: set[str] = set()
    for line in lines:
        found = project(ROOT / line.removeprefix("-e ./").partition("[")[0])
        assert "[" not in line or found["name"] not in needed, f"{line} comes after one that needs it"
        needed |= {re.split(r"[<>=\[; ]", dependency)[0] for dependency in found["dependencies"]}


def test_the_two_lists_of_tools_agree():
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    tools = {line for line in lines if re.match(r"[a-zA-Z]", line)}
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    assert {re.split(r"[<>=]", tool)[0] for tool in group} == tools


@every(PACKAGES)
def test_every_dependency_has_a_tested_version(package):
    pinned = {
        re.split("==", line)[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for dependency in project(package)["dependencies"]:
        name = re.split(r"[<>=\[; ]", dependency)[0].lower()
        assert name in pinned or name.startswith("rlalign"), f"constraints.txt says no version of {name}"


def test_the_extras_that_say_tested_versions_say_those_of_constraints():
    """`rlalign doctor` tells by them what is installed and was not tested."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.lower() for line in lines if "==" in line and not line.startswith("#")}
    for package in (ROOT / "core", ROOT / "plugins/policies/hf"):
        about = project(package)
        told = about["optional-dependencies"]["tested"]
        assert {line.lower() for line in told} <= pinned
        names = {re.split(r"[<>=]", line)[0].lower() for line in [*told, "rlalign"]}
        assert names == {re.split(r"[<>=]", line)[0].lower() for line in about["dependencies"]} | {"rlalign"}


def imported(package: Path) -> set[str]:
    """Top-level modules that a package's sources import, for types only or not."""
    found = set()
    sources = [path for path in (package / "src").rglob("*.py") if "templates" not in path.parts]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - {module.name for module in (package / "src").iterdir()} - set(sys.stdlib_module_names)


packages_distributions = cache(importlib.metadata.packages_distributions)


@every([*PACKAGES, *EXAMPLES])
def test_what_is_imported_is_declared(package):
    """The core brings what the core declares; whatever else a plugin imports it declares itself."""
    brought = packages_distributions()
    about = project(package)
    extras = [d for extra in about.get("optional-dependencies", {}).values() for d in extra]
    core = project(ROOT / "core")["dependencies"]
    told = [*about["dependencies"], *extras, *core]
    declared = {re.split(r"[<>=\[; ]", d)[0].lower().replace("_", "-") for d in told}
    for module in imported(package):
        offered = {name.lower().replace("_", "-") for name in brought.get(module, [module])}
        assert offered & declared, f"{module} is imported, and none of {offered} is declared"


def test_dependencies_between_packages_are_known_to_uv():
    used = {re.split(r"[<>=]", d)[0] for p in PACKAGES for d in project(p)["dependencies"]}
    sources = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["sources"]
    assert {name for name in used if name.startswith("rlalign")} == set(sources)


def test_no_two_packages_offer_one_name():
    names = Counter(name for package in [*PACKAGES, *EXAMPLES] for name in offers(package))
    assert [name for name, count in names.items() if count > 1] == []


@every([ROOT / "core", *PLUGINS, *EXAMPLES])
def test_components(package, with_example_plugins):
    assert offers(package) or clusters_of(package)
    for name in offers(package):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), f"{name}: lower case, with hyphens"
        loaded = Registry().load(name)
        assert loaded.installed is not None, name
        assert loaded.installed.distribution == project(package)["name"]
        assert kind(loaded.cls) in ("component", "policy", "value", "sampler", "task")
        assert loaded.cls.__doc__, f"{name} has no docstring"
        options_are_told(name, loaded.cls.Config)
    for name in clusters_of(package):
        cluster = clusters.find(name, "here")
        assert cluster.__doc__, f"{name} has no docstring"
        options_are_told(name, cluster.Config)


def options_are_told(name: str, config: type[BaseModel]) -> None:
    assert issubclass(config, BaseModel)
    for option, field in config.model_fields.items():
        assert field.description, f"{name}: the option {option} is not described"
        assert re.fullmatch(r"[a-z][a-z0-9_]*", option)
        assert option not in ("on", "off", "yes", "no"), f"{name}: YAML reads {option} as a truth value"


@every(PACKAGES)
def test_what_is_installed_is_what_is_written(package):
    points = importlib.metadata.distribution(project(package)["name"]).entry_points
    for group, said in (("rlalign", offers(package)), (clusters.GROUP, clusters_of(package))):
        assert {p.name: p.value for p in points.select(group=group)} == said, "install again: `make setup`"


@every([*PLUGINS, *EXAMPLES])
def test_readme_has_its_parts(package):
    text = (package / "README.md").read_text()
    about = project(package)
    assert text.startswith(f"# {about['name']}\n\n")
    assert re.search(r"^pip install -c constraints\.txt .*-e \./" + named(package), text, re.MULTILINE)
    headings = re.findall(r"^## (\w+)", text, re.MULTILINE)
    assert headings == ["Options", "Reproduced", headings[-1]] and headings[-1] in ("Paper", "Papers")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert blocks and 5 <= len(blocks[0].splitlines()) <= 15
    marked = re.findall(r"<!-- (?:options|defaults): (.+?) -->", text)
    named_there = {name.strip() for names in marked for name in names.split(",")}
    assert {name for name in named_there if ":" not in name} == set(
        offers(package)
    )  # with one, a model's fields


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plugins"],
        ["run", "--help"],
        ["study", "--help"],
        ["bench", "--help"],
        ["humaneval", "--help"],
        ["compare", "--help"],
        ["diff", "--help"],
        ["reproduce", "--help"],
        ["chat", "--help"],
        ["new", "plugin", "--help"],
        ["schema", "--help"],
        ["report", "--help"],
        ["watch", "--help"],
        ["--version"],
    ],
)
def test_the_command_answers_at_once(arguments, tmp_path):
    """In under 0.7 s of a processor's time, the best of six, and without torch."""
    command = Path(sys.executable).with_name("rlalign")
    took = [math.inf]
    while min(took) >= 0.7 and len(took) <= 6:
        before = os.times()
        subprocess.run([command, *arguments], check=True, capture_output=True, cwd=tmp_path)
        after = os.times()
        user = after.children_user - before.children_user
        took.append(user + after.children_system - before.children_system)
    assert min(took) < 0.7
    code = (
        "import sys\nfrom rlalign.cli.commands import program\n"
        f"program({arguments!r}, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_importing_rlalign_needs_no_torch():
    code = "import sys, rlalign; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


ABSENT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "peft", "datasets", "accelerate", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from rlalign.config.load import load_pipeline
from rlalign.running import loop
from rlalign.testing.bench import Silence
pipeline = load_pipeline(sys.argv[1], ["train.iterations=3", "evaluate=null"])
print(loop.start(pipeline, root=sys.argv[2], display=Silence()).run().path)
"""


@pytest.mark.parametrize("example", ["bandit", pytest.param("toy-numbers", marks=pytest.mark.slow)])
def test_core_needs_no_model_library(example, tmp_path):
    subprocess.run(
        [sys.executable, "-c", ABSENT, str(ROOT / f"examples/{example}.yaml"), str(tmp_path)], check=True
    )
    assert (tmp_path / example / "model/model.safetensors").is_file()


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("no git repository: the files of a release are those that were tracked")
    return [p for name in listed.stdout.decode().split("\0") if name and (p := ROOT / name).is_file()]


def test_no_file_knows_the_machine_it_was_written_on():
    foreign = re.compile(r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+)/")
    mine = re.compile(re.escape(str(ROOT)))
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if foreign.search(line) or (len(ROOT.parts) > 2 and mine.search(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_no_source_of_a_package_is_ignored():
    """hatchling leaves what git ignores out of a wheel without a word."""
    files = [
        str(path.relative_to(ROOT))
        for package in [*PACKAGES, *EXAMPLES]
        for path in (package / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    tracked()
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""


@pytest.mark.parametrize("package", [ROOT / "core", *PLUGINS], ids=named)
def test_files_say_of_components_what_their_classes_say(package):
    for name, value in offers(package).items():
        found, cls = outline(value), Registry().load(name).cls
        assert found.base == kind(cls), name
        marks = {hook: getattr(getattr(cls, hook, None), "rlalign_impl", None) for hook in HOOKS}
        assert dict(found.hooks) == {
            hook: "wrapper" if mark["wrapper"] else "plain" for hook, mark in marks.items() if mark
        }, name
        assert found.sentence and found.sentence == sentence(cls.__doc__), name


@pytest.mark.parametrize("package", [ROOT / "core", *PLUGINS], ids=named)
def test_defaults_that_files_tell_are_those_of_classes(package):
    for name, value in offers(package).items():
        told, cls = declared(value), Registry().load(name).cls
        for option, default in told.options.items():
            real = cls.Config.model_fields[option].default
            assert real == (tuple(default) if isinstance(real, tuple) else default), f"{name}: {option}"
        for attribute in ("defaults", "responses", "higher_is_better"):
            if attribute in told.attributes:
                assert told.attributes[attribute] == getattr(cls, attribute), f"{name}: {attribute}"


def test_nothing_tells_to_install_a_name_that_a_stranger_may_own():
    """None of our own packages is published: whoever takes the name would be installed."""
    texts = [file.read_text() for package in PACKAGES for file in sorted((package / "src").rglob("*.py"))]
    told = {name for text in texts for name in re.findall(r"pip install[ '\"]+([^\s`'\"]+)", text)}
    known = {"gguf", "gymnasium", "huggingface_hub", "jsonschema", "matplotlib", "pandas", "peft", "plotly"}
    known |= {"sentencepiece", "textworld", "transformers"}
    assert told == {
        *known,
        "{library}",
        "-e",
    }  # a library that a table names; a folder of one's own
