"""The taxi is Gymnasium's, its stages are the paper's: transitions, pictures, returns worked out backwards."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from rlalign.testing import EnvironmentTests
from rlalign_plugin_reflect_rl.text_taxi import ABOARD, ACTIONS, STARTS, Drive, Stage, Taxi, begun, driven

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())["taxi"]


class TestTaxi(EnvironmentTests):
    component = "text-taxi"
    any_split = True


@pytest.mark.parametrize("move", GOLDEN["moves"], ids=str)
def test_it_drives_as_gymnasiums(move: list[int]) -> None:
    state, action, *expected = move
    after, reward, over = Taxi.of(state).after(action)
    assert [after.number, reward, over] == expected


@pytest.mark.parametrize("state", GOLDEN["pictures"])
def test_pictures(state: str) -> None:
    assert Taxi.of(int(state)).picture == GOLDEN["pictures"][state]


def value(stage: Stage, best: bool) -> float:
    """The mean return over all starts, within 20 steps."""

    @cache
    def to_go(state: Taxi, picked_up: bool, steps: int) -> float:
        if steps == 0:
            return 0.0
        found = []
        for action in range(len(ACTIONS)):
            after, reward, over = driven(state, action, stage, picked_up)
            later = 0.0 if over else to_go(after, picked_up or after.passenger == ABOARD, steps - 1)
            found.append(reward + later)
        return max(found) if best else sum(found) / len(found)

    return sum(to_go(begun(state, stage), False, 20) for state in STARTS) / len(STARTS)


@pytest.mark.parametrize("stage", GOLDEN["returns"])
def test_returns_by_stage(stage: Stage) -> None:
    expected = GOLDEN["returns"][stage]
    assert value(stage, True) == pytest.approx(expected["optimal"], abs=1e-9)
    assert value(stage, False) == pytest.approx(expected["uniform"], abs=1e-9)


def test_an_episode_goes_as_its_steps_do() -> None:
    """Fetch and bring; what changes nothing ends it, the first action too."""
    drive = Drive(Taxi(0, 0, 0, 1), "full")
    assert drive.state.picture.splitlines()[1] == "|O: | : :D|"
    turn = drive.step("pick up")
    assert (turn.reward, turn.done, drive.state.passenger) == (1.0, False, ABOARD)
    ways = ["south", "south", *["east"] * 4, "north", "north"]
    assert [drive.step(way).reward for way in ways] == [-0.05] * 8
    turn = drive.step("drop off")
    assert (turn.reward, turn.done, turn.metrics) == (1.0, True, {"success": 1.0})
    for said in ("north", "drop off", "nowhere"):
        turn = Drive(Taxi(0, 0, 0, 1), "full").step(said)
        assert (turn.reward, turn.done, turn.metrics) == (-0.5, True, {"success": 0.0})
