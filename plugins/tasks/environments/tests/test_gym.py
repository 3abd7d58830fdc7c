"""Gymnasium's games: Taxi is the golden one, ends and masks arrive, and episodes of one start differ in chance only."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import rlalign
from rlalign import ConfigError, Turn
from rlalign.decoding.play import started
from rlalign.randomness import Seeds
from rlalign.running.playing import Playing
from rlalign.testing import EnvironmentTests

gymnasium = pytest.importorskip("gymnasium")

from rlalign_plugin_environments.gym import Gym  # noqa: E402

GAMES = Path(__file__).parent / "games.py"
MOVES = ("south", "north", "east", "west", "pick-up", "drop-off")
STOPS = ((0, 0), (0, 4), (4, 0), (4, 3))
WALLS = {(0, 1), (1, 1), (3, 0), (4, 0), (3, 2), (4, 2)}
"""Cells with a wall to their east."""


def gym(**options: Any) -> Gym:
    made = Gym(Gym.Config(**{"id": "Taxi-v4", "actions": MOVES, **options}))
    made.name = "gymnasium"
    return made


class TestTaxi(EnvironmentTests):
    component = "gymnasium"
    options = {
        "id": "Taxi-v4",
        "actions": list(MOVES),
        "see": f"{GAMES}:picture",
        "steps": 6,
        "size": 8,
        "tokens": 400,
    }
    any_split = True


class TestFreeSaying(EnvironmentTests):
    component = "gymnasium"
    options = {
        "id": "FrozenLake-v1",
        "actions": ["west", "south", "east", "north"],
        "choices": False,
        "size": 4,
    }
    sayings = ("Go\nsouth", "east", "somewhere", "", "north ")
    any_split = True


# -- Taxi, by rules written down by hand ------------------------------------------------------------------------


def decoded(state: int) -> tuple[int, int, int, int]:
    state, goal = divmod(state, 4)
    state, passenger = divmod(state, 5)
    row, column = divmod(state, 5)
    return row, column, passenger, goal


def moved(state: int, action: int) -> tuple[int, int, bool]:
    """The next state, the reward, and whether it is over; passenger 4 is in the taxi."""
    row, column, passenger, goal = decoded(state)
    reward, over = -1, False
    if action == 0:
        row = min(row + 1, 4)
    elif action == 1:
        row = max(row - 1, 0)
    elif action == 2 and (row, column) not in WALLS:
        column = min(column + 1, 4)
    elif action == 3 and (row, column - 1) not in WALLS:
        column = max(column - 1, 0)
    elif action == 4:
        if passenger < 4 and STOPS[passenger] == (row, column):
            passenger = 4
        else:
            reward = -10
    elif action == 5:
        if passenger == 4 and STOPS[goal] == (row, column):
            passenger, reward, over = goal, 20, True
        elif passenger == 4 and (row, column) in STOPS:
            passenger = STOPS.index((row, column))
        else:
            reward = -10
    return ((row * 5 + column) * 5 + passenger) * 4 + goal, reward, over


GOLDEN = (
    (42, 0, 142, -1, False), (42, 2, 62, -1, False), (0, 4, 16, -1, False), (16, 4, 16, -10, False),
    (16, 5, 0, 20, True), (97, 5, 85, 20, True), (479, 1, 379, -1, False), (479, 3, 479, -1, False),
    (121, 2, 121, -1, False), (201, 2, 221, -1, False), (328, 4, 328, -10, False), (389, 5, 389, -10, False),
)  # fmt: skip
"""(state, action, next, reward, over)"""


def test_taxi_is_the_golden_one_on_all_3000_transitions() -> None:
    environment = gym(arguments={"max_episode_steps": 10_000})
    episode, _ = environment.start(environment.examples("train")[0], *(Seeds(0).rng(x) for x in "ab"))
    inner = episode._game.unwrapped  # type: ignore[attr-defined]
    for state in range(500):
        for action, move in enumerate(MOVES):
            inner.s, inner.lastaction = state, None
            turn = episode.step(move)
            after, reward, over = moved(state, action)
            assert (turn.reward, turn.done, turn.cut) == (reward, over, False), (state, move)
            assert turn.say == ("" if over else str(after)), (state, move)
    for state, action, after, reward, over in GOLDEN:
        assert moved(state, action) == (after, reward, over)


# -- ends, masks and chance -------------------------------------------------------------------------------------


def played(environment: Gym, *texts: str, samples: int = 1) -> list[list[Turn]]:
    """The turns of episodes of one start that are told the same."""
    game = Playing(environment, list(environment.examples("train")[:1]), samples, Seeds(3).rng)
    with started(game, slice(0, 1)) as (_, firsts):
        found = [[firsts[0]] for _ in range(samples)]
        for text in texts:
            rows = [row for row in range(samples) if not found[row][-1].over]
            for row, turn in zip(rows, game.step(rows, [text] * len(rows)), strict=True):
                found[row].append(turn)
    return found


def test_only_what_the_mask_allows_may_be_said() -> None:
    ((first, *turns),) = played(gym(), "north", "north", "north", "north")
    assert set(first.choices or ()) < set(MOVES)
    for before, after in zip([first, *turns], turns, strict=False):
        assert ("north" in (before.choices or ())) == (before.say != after.say)
        for choice in before.choices or ():
            state = int(str(before.say))
            assert moved(state, MOVES.index(choice))[0] != state


def test_a_time_limit_cuts_and_the_rules_end() -> None:
    limited = gym(arguments={"max_episode_steps": 2})
    assert limited.turns == 2
    ((_, before, last),) = played(limited, "north", "south", "north")
    assert not before.over and last.cut and not last.done and last.say == ""
    lake = gym(id="FrozenLake-v1", actions=("w", "s", "e", "n"), arguments={"is_slippery": False})
    ((*_, fell),) = played(lake, "s", "e")
    assert fell.done and fell.reward == 0 and fell.choices is None


def test_episodes_of_a_start_share_where_they_begin_and_no_more() -> None:
    slippery = gym(arguments={"is_rainy": True})
    episodes = played(slippery, *["south"] * 6, samples=12)
    assert len({turns[0].say for turns in episodes}) == 1
    assert len({tuple(str(turn.say) for turn in turns) for turns in episodes}) > 1
    assert episodes == played(slippery, *["south"] * 6, samples=12)


def test_a_number_of_starts() -> None:
    game = Playing(gym(starts=2), [gym().examples("train")[0]] * 12, 1, Seeds(0).rng)
    with started(game, slice(0, 12)) as (_, firsts):
        assert len({first.say for first in firsts}) == 2


def test_free_saying() -> None:
    lake = gym(
        id="FrozenLake-v1", actions=("w", "s", "e", "n"), choices=False, arguments={"is_slippery": False}
    )
    ((_, wrong, moved_),) = played(lake, "I think: s, or e?", "I would go\n s ")
    assert wrong.say == "Say one of: w, s, e, n\n" and wrong.metrics == {"no_action": 1}
    assert moved_.say == "4" and not moved_.metrics


def test_in_a_chat_what_is_no_action_is_answered_by_a_message() -> None:
    chat = gym(choices=False, see=Path(f"{GAMES}:in_chat"))
    ((_, wrong),) = played(chat, "fly")
    assert wrong.say == [{"role": "user", "content": f"Say one of: {', '.join(MOVES)}"}]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`Taxi-v4` ends after 200 actions.*max_episode_steps: 300"):
        gym(steps=300)
    assert gym(steps=300, arguments={"max_episode_steps": 300}).turns == 300
    with pytest.raises(ConfigError, match=r"has 6 actions, and `actions` names 2"):
        played(gym(actions=("a", "b")))
    with pytest.raises(ConfigError, match=r"only `Discrete` ones"):
        played(gym(id="MountainCarContinuous-v0", actions=()))
    with pytest.raises(ConfigError, match=r"Gymnasium cannot make `Taxy-v4`"):
        gym(id="Taxy-v4")
    with pytest.raises(ValidationError, match="there is no such file"):
        gym(see=tmp_path / "none.py:see")


# -- the example ------------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[4] / "examples/taxi.py"


def driven(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """The evaluations of the example."""
    spec = importlib.util.spec_from_file_location("taxi_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found: list[dict[str, Any]] = rlalign.run(
        rlalign.load(example.PIPELINE, changes), root=folder
    ).evaluations
    return found


def test_the_example_runs(tmp_path: Path) -> None:
    changes = {"train.iterations": 1, "train.prompts": 2, "generation.samples": 2, "evaluate.examples": 2}
    first, last = driven(tmp_path, **changes)
    assert -50 <= last["eval/played"] <= 20 and first["eval/length"] <= 99


@pytest.mark.slow
def test_the_example_learns(tmp_path: Path) -> None:
    first, *_, last = driven(tmp_path)
    assert first["eval/played"] < -45 and last["eval/played"] > 0


# -- MiniGrid -----------------------------------------------------------------------------------------------------


def test_minigrid_in_words() -> None:
    pytest.importorskip("minigrid")
    moves = ("left", "right", "forward", "pick-up", "drop", "toggle", "done")
    told = Path("rlalign_plugin_environments.minigrid:see")
    environment = gym(id="BabyAI-GoToRedBallGrey-v0", package="minigrid", actions=moves, see=told, steps=20)
    ((first, *turns),) = played(environment, "left", "left", "left", "left")
    assert str(first.say).startswith("Mission: go to the red ball. ")
    assert [turn.say for turn in turns[3:]] == [first.say] and len({turn.say for turn in turns}) > 1
    assert any("A red ball" in str(turn.say) for turn in turns)
    ahead = [str(turn.say).partition("Ahead: ")[2].partition(".")[0] for turn in turns]
    assert all(ahead)
    assert played(environment, "left", "forward") == played(environment, "left", "forward")
    lava = gym(id="MiniGrid-LavaCrossingS9N1-v0", package="minigrid", actions=moves, see=told)
    assert "lava" in str(played(lava)[0][0].say) + str(played(lava, "right", "right")[0][-1].say)
