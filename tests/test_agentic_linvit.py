"""The studies of benchmarks/agentic/linvit: their lock is what the protocol says, and what is planned."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlalign_study import plan
from rlalign_study.file import Study

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks/agentic/linvit"
PRIOR, SEARCH = (Study.read(FOLDER / f"{name}.yaml") for name in ("prior", "search"))


@pytest.fixture(scope="module")
def worlds():
    from rlalign_study.file import module_of

    return module_of(FOLDER / "worlds.py")


@pytest.mark.parametrize("study, count", ((PRIOR, 80), (SEARCH, 150)), ids=("prior", "search"))
def test_what_is_planned(study, count):
    made = []
    for world in study.worlds:
        first = {arm: plan.settings(study, world, arm)[0] for arm in study.arms_of(world)}
        made += plan.main(study, world, first)
    assert len(made) == count


@pytest.mark.parametrize("pays", ("digits", "opening"))
def test_the_lock(worlds, pays):
    """Worth of a plan against plain enumeration of what comes of its turns, and against the game itself."""
    config = worlds.LockOptions(draw="7", pays=pays)
    digits = worlds.code("7")
    pi = torch.full((8, 8, 8), 0.3 / 7, dtype=torch.float64)
    for wheel, digit in enumerate(digits):
        pi[wheel, :, digit] = 0.7
    expected = 0.0
    for right in product((True, False), repeat=8):
        hand, chance, paid = worlds._Hand(worlds.Lock.Config(draw="7", pays=pays)), 1.0, 0.0
        for ok in right:
            digit = digits[hand.wheel]
            turn = hand.step(str(digit if ok else (digit + 1) % 8))
            chance *= 0.7 if ok else 0.3
            paid += turn.reward
        expected += chance * paid
    assert worlds.worth(pi, config) == pytest.approx(expected)
    pi = torch.nn.functional.one_hot(torch.tensor(digits), 8).double()[:, None].expand(8, 8, 8)
    assert worlds.worth(pi, config) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "worths, episodes, found",
    (
        ([0.5] * 3 + [0.95] * 20, 4, 1),
        ([0.95] * 19 + [0.5] + [0.95] * 20, 21, 1),
        ([0.5] * 30, 200, 0),
        ([0.5] * 5 + [0.95] * 2, 6, 1),  # ended because it knew enough: that plan stays
    ),
)
def test_episodes_are_counted_to_the_first_of_twenty(worlds, worths, episodes, found):
    logged = [{"worth/plan": worth} for worth in worths]
    run = SimpleNamespace(logged=logged, pipeline={"train": {"iterations": 200}})
    assert worlds.of_run(run) == {"episodes": episodes, "found": found}


def test_priors(worlds):
    scores = worlds._lock_scores("7", 0.1 / 7, 0.9)
    for wheel, digit in enumerate(worlds.code("7")):
        p = torch.tensor([scores[str(wheel)][str(d)] for d in range(8)]).exp()
        assert float(p.sum()) == pytest.approx(1) and float(p[digit]) == pytest.approx(0.1 / 7)
        assert int(p.argmax()) == (digit + 1) % 8
