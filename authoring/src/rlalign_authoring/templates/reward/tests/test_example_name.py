"""The formula on literal numbers, and the tests that every reward inherits."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import pytest
from rlalign.testing import RewardTests

from rlalign_plugin_example_name import ExampleName, nearness

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "text, value",
    [("a b c d", 1.0), ("a b c", 0.75), ("a b c d e", 0.75), ("", 0.0), ("a " * 20, 0.0)],
)
def test_nearness(text: str, value: float) -> None:
    assert nearness(text, 4) == value


# Some thirty tests: the same value alone and beside others, in any order and thread; any text, however strange;
# bounds kept; nothing changed. docs/plugins.md says what may be declared here where something is so on purpose.
class TestExampleName(RewardTests):
    component = ExampleName
    options = {"words": 3}


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["example-name"]
    assert pkgutil.resolve_name(value) is ExampleName
