"""Other people's environments: OpenEnv's and SkyRL-gym's by what they can do, TextWorld's where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlalign import Environment, Turn
from rlalign.decoding.play import started
from rlalign.randomness import Seeds
from rlalign.running.playing import Playing
from rlalign.testing import EnvironmentTests
from rlalign_plugin_environments.others import OpenEnv, SkyRLGym, TextWorld

HERE = Path(__file__).parent
GAMES = HERE / "games.py"


class TestOpenEnv(EnvironmentTests):
    component = "openenv"
    options = {
        **{
            name: f"{GAMES}:{what}"
            for name, what in (("make", "countdown"), ("act", "number"), ("see", "message"))
        },
        "size": 4,
        "tokens": 200,
    }
    sayings = ("5", "4", "", "three")
    any_split = True


class TestSkyRLGym(EnvironmentTests):
    component = "skyrl-gym"
    options = {
        "path": str(HERE / "sums.jsonl"),
        "make": f"{GAMES}:multiply",
        "splits": {"train": 0.6, "val": 0.4},
    }
    other_options = {"splits": {"train": 0.5, "val": 0.5}}
    sayings = ("198", "no", "")


def played(environment: Environment, *texts: str) -> list[Turn]:
    game = Playing(environment, list(environment.examples("train")[:1]), 1, Seeds(0).rng)
    with started(game, slice(0, 1)) as (_, firsts):
        found = list(firsts)
        for text in texts:
            found += [] if found[-1].over else game.step([0], [text])
    return found


def test_openenv() -> None:
    names: dict[str, Any] = {"make": Path(f"{GAMES}:countdown"), "act": Path(f"{GAMES}:number")}
    first, *turns = played(OpenEnv(OpenEnv.Config(**names)), *(str(i) for i in range(8, -1, -1)))
    start = int(str(first.say).removeprefix('{"message": "').removesuffix('"}'))
    assert 3 <= start <= 9 and len(turns) == start and turns[-1].done and turns[-1].say == ""
    assert sum(turn.reward for turn in turns) == (start if start == 9 else 0)
    assert OpenEnv(OpenEnv.Config(**names, replays=False)).replays is False


def test_skyrl_gym() -> None:
    options: dict[str, Any] = {"path": HERE / "sums.jsonl", "make": Path(f"{GAMES}:multiply")}
    environment = SkyRLGym(SkyRLGym.Config(**options))
    first, again, right = played(environment, "197", "198")
    assert [m["content"] for m in first.say] == ["Multiply.", "11 times 18?"]  # type: ignore[index]
    assert again.say == [{"role": "user", "content": "Try again."}] and not again.over
    assert right.done and right.reward == 1 and right.metrics == {"tries": 2}


def test_textworld(tmp_path: Path) -> None:
    textworld = pytest.importorskip("textworld")
    options = textworld.GameOptions()
    options.path, options.seeds, options.force_recompile = str(tmp_path / "game.z8"), 1234, True
    game = textworld.generator.make_game(options)
    textworld.generator.compile_game(game, options)
    environment = TextWorld(TextWorld.Config(path=tmp_path))
    first, *_ = played(environment)
    assert first.choices and len(first.choices) > 1 and str(first.say).endswith("> ")
    won = played(environment, *game.metadata["walkthrough"])
    assert all(turn.choices and not turn.over and not turn.failed for turn in won[:-1])
    assert won[-1].done and won[-1].metrics == {"won": 1.0}
    assert sum(turn.reward for turn in won) == game.max_score > 0


def test_an_observation_of_openenv_may_be_any_of_json() -> None:
    names: dict[str, Any] = {"make": Path(f"{GAMES}:mapping")}
    first, second = played(OpenEnv(OpenEnv.Config(**names)), "left")
    assert (first.say, second.say) == ('{"at": 0}', "[1, 2]")
