"""Blocks: all positions and moves there are, what the values of positions are, and an environment like any other."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from rlalign import Turn
from rlalign.testing import EnvironmentTests
from rlalign_plugin_toy_tasks import ToyBlocks, goal_pairs
from rlalign_plugin_toy_tasks.blocks import Position, distances, pairs_of

TOWER = Position(("dcba",))


class TestBlocks(EnvironmentTests):
    component = "toy-blocks"
    options = {"goal": ["ba", "c"]}
    any_split = True


def test_there_are_125_positions_of_four_blocks() -> None:
    found = distances(TOWER)
    held = [at for at in found if at.held]
    assert (len(found), len(held)) == (125, 52)
    assert len({move for at in found for move in at.moves()}) == 32  # 4 + 4 + 12 + 12
    for at in found:
        assert Position.of(str(at)) == at
        assert all(at in to.moves().values() for to in at.moves().values())  # every move can be taken back


def test_moves_by_hand() -> None:
    assert {move: str(to) for move, to in Position(("ac", "d"), "b").moves().items()} == {
        "stack-b-c": "acb d",
        "stack-b-d": "ac db",
        "put-down-b": "ac b d",
    }
    assert {move: str(to) for move, to in Position(("ac", "b")).moves().items()} == {
        "unstack-c-a": "a b hand c",
        "pick-up-b": "ac hand b",
    }


def test_distances() -> None:
    """A tower is turned round in eight moves, each block taken and put once; others need up to twelve."""
    found = distances(TOWER)
    assert found[Position(("abcd",))] == 8 and max(found.values()) == 12
    empty = Counter(moves for at, moves in found.items() if not at.held)
    assert empty == {0: 1, 2: 1, 4: 2, 6: 7, 8: 21, 10: 26, 12: 15}
    for moves in (4, 6):
        assert len(ToyBlocks(ToyBlocks.Config(distance=moves)).examples("val")) == empty[moves]
    assert len(ToyBlocks(ToyBlocks.Config()).examples("train")) == 72


def test_what_a_position_is_worth() -> None:
    """Three pairs: c on d, b on c, a on b."""
    assert pairs_of(TOWER, ("dcba",)) == 3
    assert pairs_of(Position(("a", "b", "dc")), ("dcba",)) == 1
    assert pairs_of(Position(("a", "dc"), "b"), ("dcba",)) == 1.5  # a on b: neither has anything on it
    assert pairs_of(Position(("abcd",)), ("dcba",)) == -(0 + 1) - (1 + 2) - (2 + 3)
    environment = ToyBlocks(ToyBlocks.Config())
    example = environment.examples("train")[0]
    assert goal_pairs(example, [("", Turn("a b dc"))]) == 1
    assert goal_pairs(example, [("", Turn(reward=1.0, done=True))]) == 1000


def test_an_episode_and_its_fork_go_their_own_ways() -> None:
    environment = ToyBlocks(ToyBlocks.Config(goal=("ba",)))
    (example,) = (e for e in environment.examples("train") if e.prompt == "a b")
    hand, first = environment.start(example, torch.Generator(), torch.Generator())
    assert first == Turn("a b", choices=("pick-up-a", "pick-up-b"))
    hand.step("pick-up-a")
    other = hand.fork()  # type: ignore[attr-defined]
    assert other.step("put-down-a").say == "a b"
    assert hand.step("fly") == Turn(
        "b hand a", choices=("stack-a-b", "put-down-a")
    )  # no move: nothing happens
    assert hand.step("stack-a-b") == Turn(reward=1.0, done=True)


@pytest.mark.parametrize("goal", (("aa",), ("a",), ("a1",), ("ab", ""), ("abcdefg",)))
def test_goals_that_are_none_are_refused(goal: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        ToyBlocks.Config(goal=goal)
