"""What the examples are, and the tests that every task inherits."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import pytest
from rlalign.testing import TaskTests

from rlalign_plugin_example_name import ExampleName

ROOT = Path(__file__).parents[1]


def test_sums() -> None:
    task = ExampleName(ExampleName.Config(most=2))
    examples = [*task.examples("train"), *task.examples("val")]
    assert len(examples) == 9
    for example in examples:
        a, b = map(int, example.id.split("+"))
        assert example.prompt == f"{a} + {b} ="
        assert example.references == (str(a + b),)


@pytest.mark.parametrize("text, read", [(" 7\n8 + 1 = 9", "7"), ("7", "7"), ("", "")])
def test_a_response_is_its_first_line(text: str, read: str) -> None:
    assert ExampleName(ExampleName.Config()).postprocess(text) == read


# Examples are sound, their order is the same in every process, splits share nothing, a run can learn from it.
# docs/tasks.md says what may be declared here where something is so on purpose.
class TestExampleName(TaskTests):
    component = ExampleName
    options = {"most": 5}


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["example-name"]
    assert pkgutil.resolve_name(value) is ExampleName
