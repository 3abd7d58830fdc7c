"""One game by hand, the tests that every environment inherits, and that the game is learned."""

from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import torch
import yaml
from rlalign.testing import EnvironmentTests, run
from safetensors.torch import load_file

from rlalign_plugin_last_stone import Game, LastStone

ROOT = Path(__file__).parents[1]


def test_a_game() -> None:
    """Against an opponent who has nothing to choose: of one stone he takes one."""
    game = Game(heap=4, noise=torch.Generator())
    assert game.told().say == "4 stones"
    assert game.told().choices == ("1", "2", "3")
    turn = game.step("3")
    assert turn.done and turn.reward == 0.0


def test_who_takes_the_last_stone_wins() -> None:
    game = Game(heap=2, noise=torch.Generator())
    assert game.told().choices == ("1", "2")
    turn = game.step("2")
    assert turn.done and turn.reward == 1.0


# The same start plays the same game, alone and beside others; choices are such that can be said; episodes are closed
# once; and all that holds of a task. docs/environments.md says more.
class TestLastStone(EnvironmentTests):
    component = LastStone


def best(heap: int) -> float:
    """The share of games that can be won against an opponent who plays by chance."""
    if heap <= 3:
        return 1.0
    left = [heap - taken for taken in (1, 2, 3)]
    return max(sum(best(h - o) if h > o else 0.0 for o in range(1, min(3, h) + 1)) / min(3, h) for h in left)


def test_it_learns_to_leave_four(tmp_path: Path) -> None:
    """Who leaves four stones wins whatever comes: of 5, 6 and 7 it takes 1, 2 and 3."""
    possible = sum(best(heap) for heap in range(2, 13)) / 11
    assert round(possible, 3) == 0.956
    pipeline = yaml.safe_load((ROOT / "pipeline.yaml").read_text())
    finished, _ = run(tmp_path, pipeline, {"last-stone": LastStone})
    assert possible - 0.1 < finished.metrics["eval/played"] < possible + 0.05
    table = load_file(finished.path / "model/model.safetensors")["table"]
    heaps = pipeline["policy"]["table"]["prompts"]
    taken = {heap: int(table[heaps.index(f"{heap} stones")].argmax()) + 1 for heap in (5, 6, 7)}
    assert taken == {5: 1, 6: 2, 7: 3}


def test_pipelines_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value = project["entry-points"]["rlalign"]["last-stone"]
    assert pkgutil.resolve_name(value) is LastStone
