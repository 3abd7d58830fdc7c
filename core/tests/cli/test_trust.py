"""Whose Python code runs: the user's own, and nobody else's; each command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlalign
from rlalign import Code, ConfigError
from rlalign.config.registry import Registry

PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": ["mine:Long"],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 2, "max_new_tokens": 3},
    "train": {"iterations": 1, "prompts": 2, "lr": 0.01},
    "evaluate": {"examples": 2},
}
MARK = "from pathlib import Path\n(Path(__file__).parent / 'MARK').touch()\n"
MINE = (
    MARK + "import torch\nfrom rlalign import Component, Score, hookimpl\n\n\nclass Long(Component):\n"
    "    @hookimpl\n    def reward(self, rollout):\n        return Score(torch.ones(len(rollout)))\n"
)
NOT_OFFERED = (
    "no installed package offers; add --trust (from Python trust=True) if you trust whoever wrote it"
)


def alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    # As `rlalign` is called: the folder it is called in is not on Python's path.
    code = "from rlalign.cli.commands import main; main()"
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ran_nothing(tmp_path: Path) -> Callable[[], bool]:
    """Whether no module ran, since the last time."""

    def look() -> bool:
        marks = list(tmp_path.rglob("MARK"))
        for mark in marks:
            mark.unlink()
        return not marks

    return look


# -- a user's own pipeline --------------------------------------------------------------------------


@pytest.mark.slow
def test_check_says_what_it_imports_and_why(ran_nothing: Callable[[], bool]) -> None:
    Path("mine.py").write_text(MINE)
    Path("toy.yaml").write_text(yaml.dump(PIPELINE))
    result = alone("check", "toy.yaml")
    assert result.returncode == 0 and result.stdout.startswith("toy: 1 phase"), result.stderr
    assert result.stderr == f"note: imports {Path.cwd()}/mine.py: the pipeline names its `Long`\n"
    assert not ran_nothing()
    assert alone("run", "toy.yaml", "--plain").stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Short: ...", "the module `mine` has no `Long` (it has Path, Short)"),
        ("def Long(): ...", "Long is no component"),
        ("class Long: ...", "Long is no component"),
        ("class Long(:", "mine.py:3: not valid Python"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_reading_tells_is_not_run(
    command: str, code: str, message: str, ran_nothing: Callable[[], bool]
) -> None:
    Path("mine.py").write_text(MARK + code)
    Path("toy.yaml").write_text(yaml.dump(PIPELINE))
    result = alone(command, "toy.yaml")
    assert result.returncode == 2 and message in result.stderr
    said = "importing what toy.yaml names …\n" if command == "run" else ""
    assert result.stdout == said and ran_nothing()


@pytest.mark.parametrize(
    "code",
    [
        "from other import *",
        "if True:\n    from other import Long",
        "try:\n    import other\nexcept ImportError as Long:\n    pass",
        "Long = make()",
        "def Long(): ...\nLong = wrap(Long)",
        "@wrap\nclass Long: ...",
        "class Long: ...\nfrom other import *",
        "def make():\n    global Long\n    Long = 1",
        "globals()['Long'] = 1",
        "import sys\nsetattr(sys.modules[__name__], 'Long', 1)",
        "for name in names:\n    exec(name)",
        "def __getattr__(name): ...",
        "with it() as (a, Long): ...",
        "(Long := 3)",
        "match x:\n    case {'a': 1, **Long}: ...",
    ],
)
def test_what_only_running_it_tells_is_not_refused_unread(code: str, tmp_path: Path) -> None:
    (tmp_path / "spelt.py").write_text(code)
    found = Code.find("spelt", "Long", tmp_path)
    assert found is not None and not found.is_absent()
    assert not found.is_no_class() or code == "(Long := 3)"


def test_nothing_on_the_way_to_a_module_is_imported(tmp_path: Path, ran_nothing: Callable[[], bool]) -> None:
    (tmp_path / "outer" / "space").mkdir(parents=True)
    (tmp_path / "outer" / "__init__.py").write_text(MARK)
    (tmp_path / "outer" / "space" / "inner.py").write_text("class Long: ...")
    found = Code.find("outer.space.inner", "Long", tmp_path)
    assert found is not None and found.file == tmp_path / "outer" / "space" / "inner.py"
    assert found.is_no_class() and Code.find("outer.no.inner", "Long", tmp_path) is None
    assert ran_nothing()


# -- what somebody else wrote -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_opened_without_running_its_code(ran_nothing: Callable[[], bool]) -> None:
    Path("theirs").mkdir()
    Path("theirs/mine.py").write_text(MINE)
    Path("theirs/toy.yaml").write_text(yaml.dump(PIPELINE))
    assert alone("run", "theirs/toy.yaml", "--plain").returncode == 0 and not ran_nothing()
    commands = (
        ["eval", "toy"],
        ["sample", "toy", "--new"],
        ["export", "toy"],
        ["export", "toy", "--samples", "s.jsonl", "--new"],
    )
    for command in commands:
        refused = alone(*command)
        assert (refused.returncode, refused.stdout) == (2, "") and ran_nothing()
        place = "runs/toy/pipeline.yaml:10: rewards[0].mine:Long"
        theirs = f"{Path.cwd()}/theirs/mine.py"
        assert refused.stderr == f"error: {place}: `mine:Long` would import {theirs}, which {NOT_OFFERED}\n"
    assert alone("sample", "toy").returncode == 0 and ran_nothing()  # reads what was logged
    assert alone("eval", "toy", "--trust").returncode == 0 and not ran_nothing()
    with pytest.raises(ConfigError, match="would import"):
        rlalign.open("runs/toy")
    assert ran_nothing()


@pytest.mark.slow
def test_a_model_is_opened_without_running_what_its_config_names(ran_nothing: Callable[[], bool]) -> None:
    Path("model").mkdir()
    for place in (Path(), Path("model")):
        (place / "evil.py").write_text(MARK + "from rlalign import Policy\n\n\nclass Thing(Policy): ...\n")
    for named in ("evil:Thing", "model.evil:Thing", "this:s"):
        Path("model/config.json").write_text(json.dumps({"model": named}))
        result = alone("eval", "model", "--task", "rlalign.testing:Numbers")
        assert result.returncode == 2 and ran_nothing()
        assert result.stderr.startswith(f"error: model/config.json: `{named}` would import ")
        assert result.stderr.endswith(f"which {NOT_OFFERED}\n") and result.stdout == ""


def test_a_file_beside_a_pipeline_does_not_stand_in_for_the_core(tmp_path: Path) -> None:
    (tmp_path / "rlalign").mkdir()
    for name in ("__init__", "testing", "mine"):
        (tmp_path / "rlalign" / f"{name}.py").write_text("raise SystemExit('this must not run')")
    assert Registry().load("rlalign.testing:Numbers", tmp_path).cls.__module__ == "rlalign.testing.tasks"
    with pytest.raises(ConfigError, match=r"`rlalign\.mine` is neither"):
        Registry().load("rlalign.mine:Long", tmp_path)


def test_data_of_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran_nothing: Callable[[], bool]
) -> None:
    from rlalign.config.validate import absolute

    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "__init__.py").write_text(MARK)
    monkeypatch.syspath_prepend(tmp_path)
    assert absolute("pkg:packed/__init__.py", tmp_path) == tmp_path / "packed" / "__init__.py"
    assert ran_nothing() and "packed" not in sys.modules
