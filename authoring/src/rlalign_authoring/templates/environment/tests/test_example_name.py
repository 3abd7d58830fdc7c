"""One game by hand, and the tests that every environment inherits."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

from rlalign.testing import EnvironmentTests

import rlalign_plugin_example_name as plugin

ROOT = Path(__file__).parents[1]


def test_a_game() -> None:
    game = plugin.Game(secret=5)
    said = [game.step(text) for text in ("3", "7", "what?", " 5\n")]
    assert [turn.say for turn in said] == ["Higher.", "Lower.", "Guess.", ""]
    assert [turn.reward for turn in said] == [-0.05, -0.05, -0.2, 1.0]
    assert [turn.done for turn in said] == [False, False, False, True]


# The same start plays the same game, alone and beside others; any saying is answered; episodes are closed once;
# and all that holds of a task. `sayings` are tried one after the other; docs/environments.md says more.
class TestExampleName(EnvironmentTests):
    component = plugin.ExampleName
    sayings = ("4", "", "no idea", "1", "7", "1" * 400)


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["example-name"]
    assert pkgutil.resolve_name(value) is plugin.ExampleName
