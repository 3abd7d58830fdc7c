"""The formula on literal numbers, and the tests that every metric inherits."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import pytest
from rlalign.testing import RewardTests

from rlalign_plugin_example_name import ExampleName, distinct

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "texts, value",
    [(["a b c"], 1.0), (["a b", "a b"], 0.5), (["a b a b"], 2 / 3), (["a"], 0.0), ([], 0.0)],
)
def test_distinct(texts: list[str], value: float) -> None:
    assert distinct(texts, 2) == value


# The same number when asked again, in any order and thread; any text, however strange; nothing changed.
# docs/plugins.md says what may be declared here where something is so on purpose.
class TestExampleName(RewardTests):
    component = ExampleName
    options = {"n": 1}


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["example-name"]
    assert pkgutil.resolve_name(value) is ExampleName
