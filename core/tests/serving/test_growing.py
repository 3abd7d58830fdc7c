"""As many processes as there is work for: begun while parts wait, given back when idle, missed by nobody."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlalign.errors import ComponentError
from rlalign.serving import afar, asking

sys.path.insert(0, str(Path(__file__).parent))
from serving_bench import isolated, rollout, run

TEXTS = ["x" * (1 + i % 5) for i in range(24)]
RIGHT = [float(len(text)) for text in TEXTS]


@pytest.fixture(autouse=True)
def crowded(nearby: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster, open for one."""
    monkeypatch.setattr(asking, "PATIENCE", 0.05)
    from nearby import Crowded

    Crowded.opens(1)
    return Crowded


def unhurried(workers: Any, **limits: Any) -> Any:
    return isolated("Unhurried", cluster="crowded", workers=workers, seconds=60, **limits)


def scores(one: Any, iteration: int = 0) -> list[float]:
    found: list[float] = one.reward(run=run(iteration), rollout=rollout(TEXTS, samples=2)).value.tolist()
    return found


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_more_are_begun_while_parts_wait_and_given_back_when_idle(crowded: Any) -> None:
    crowded.opens(8)
    with unhurried({"least": 1, "most": 3, "idle": 0.4}) as one:
        one.setup(run())
        assert len(crowded.there) == 1
        assert scores(one) == RIGHT
        assert crowded.most == 3
        until(lambda: len(crowded.there) == 1)
        assert scores(one, iteration=1) == RIGHT
    until(lambda: not crowded.there)


def test_a_batch_that_nobody_waits_for_begins_none(crowded: Any) -> None:
    crowded.opens(8)
    with unhurried({"most": 8}) as one:
        one.setup(run())
        assert one.reward(run=run(), rollout=rollout(["a", "bc"], samples=2)).value.tolist() == [1.0, 2.0]
        time.sleep(0.2)
        assert crowded.most == 1


def test_who_finds_no_room_holds_nobody_up(crowded: Any) -> None:
    """And comes once there is some."""
    with unhurried({"most": 3}) as one:
        one.setup(run())
        assert scores(one) == RIGHT and len(crowded.there) == 1
        crowded.room = 2
        until(lambda: len(crowded.there) == 2)
        assert scores(one, iteration=1) == RIGHT and crowded.most == 2


def test_who_never_finds_room_is_not_missed(crowded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afar, "START_SECONDS", 0.2)
    with unhurried({"most": 3}) as one:
        one.setup(run())
        assert scores(one) == RIGHT
        until(lambda: len(one._pool._members) == 1)
        assert scores(one, iteration=1) == RIGHT
    with unhurried(2) as one, pytest.raises(ComponentError) as caught:
        one.setup(run())
    assert "`unhurried` in 2 processes of its own on crowded, p.yaml:3: it was not there within 0.2" in str(
        caught.value
    )


def test_who_is_lost_as_it_begins_is_not_missed_where_others_are(crowded: Any) -> None:
    crowded.opens(8, sound=1)
    with unhurried({"most": 3}, retries=0) as one:
        one.setup(run())
        for iteration in range(2):
            assert scores(one, iteration) == RIGHT
        assert crowded.most == 1
    crowded.opens(8, sound=1)
    with unhurried(2, retries=0) as one, pytest.raises(ComponentError, match="was lost as it began"):
        one.setup(run())


@pytest.mark.parametrize("workers", [2, {"least": 2, "most": 4}])
def test_where_one_is_lost_and_its_room_too_the_others_do_its_part(crowded: Any, workers: Any) -> None:
    crowded.opens(2, losses=1)
    with unhurried(workers, retries=1) as one:
        one.setup(run())
        assert scores(one) == RIGHT
        assert (crowded.losses, crowded.room, len(crowded.there)) == (0, 1, 1)


def test_the_last_one_that_is_lost_is_told(crowded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    crowded.opens(1, losses=1)
    with unhurried({"most": 4}, retries=1) as one:
        one.setup(run())
        monkeypatch.setattr(afar, "START_SECONDS", 0.1)
        with pytest.raises(ComponentError, match=r"was not there within 0\.1 seconds; has the cluster room"):
            scores(one)
        crowded.room = 1
        assert scores(one) == RIGHT  # asked again, it is begun again


def test_a_batch_is_cut_by_how_many_there_may_be(crowded: Any) -> None:
    """Not by how many there are: a reward that draws draws the same."""
    cut = []
    for workers in (2, {"most": 2}):
        crowded.opens(2)
        with unhurried(workers) as one:
            one.setup(run())
            assert scores(one) == RIGHT
        cut.append(sorted((each["key"], len(each["groups"])) for each in crowded.asked))
    assert cut[0] == cut[1] and [size for _, size in cut[0]] != [1] * 12


def test_what_fails_takes_the_batch_with_it_and_nothing_of_it_stays(crowded: Any) -> None:
    crowded.opens(2)
    with unhurried({"most": 2}) as one:
        one.setup(run())
        with pytest.raises(ComponentError, match="it raised ValueError: no such word"):
            one.reward(run=run(), rollout=rollout(["raises", *TEXTS], samples=1))
        asked = len(crowded.asked)
        assert scores(one) == RIGHT
        assert len(crowded.asked) <= asked + 9


def test_how_many_is_said_in_words() -> None:
    from rlalign.config.pipeline import Isolate

    def said(workers: Any) -> str:
        return Isolate.model_validate({"workers": workers, "cluster": "crowded"}).where

    assert said(1) == said({"most": 1}) == "in a process of its own on crowded"
    assert said(4) == "in 4 processes of its own on crowded"
    assert said({"least": 2, "most": 64}) == "in 2 to 64 processes of its own on crowded"
