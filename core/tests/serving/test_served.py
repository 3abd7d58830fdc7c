"""A served reward gives what the real one gives; whatever it does, the run is told in one sentence."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.records.answers import Answers
from rlalign.records.rundir import RunDir
from rlalign.serving.served import unservable

sys.path.insert(0, str(Path(__file__).parent))
from serving_bench import isolated, real, rollout, run


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[Any]:
    """One process for all that leave it alive."""
    with isolated("Misbehaves", seconds=20) as one:
        one.setup(run())
        yield one


def asked(one: Any, *texts: str) -> torch.Tensor:
    value: torch.Tensor = one.reward(run=run(), rollout=rollout(texts)).value
    return value


def test_the_same_to_the_bit() -> None:
    """Scores by step and by response, metrics, references, meta, and what JSON has no number for."""
    given, inline = rollout(["a bc", "d", "", "efg hi", "jk", "l" * 30], samples=2), real("Sees")
    here = inline.reward(run=run(), rollout=given)  # type: ignore[attr-defined]
    with isolated("Sees") as one:
        there = one.reward(run=run(), rollout=given)
        assert one.evaluate(run=run(), rollout=given) == inline.evaluate(rollout=given)  # type: ignore[attr-defined]
    assert there.value.dtype == here.value.dtype == torch.float64
    assert torch.equal(there.value, here.value.where(_inside(given), 0.0))
    assert torch.equal(there.metrics["meta"], here.metrics["meta"])
    assert torch.equal(there.metrics["references"], here.metrics["references"].to(torch.float32))


def _inside(given: Rollout) -> torch.Tensor:
    return torch.arange(given.steps) < given.length_N[:, None]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raises", "raised ValueError: no such word (served_rewards.py:"),
        ("raises ours", "says that something is amiss"),
        ("sys.exit", "raised SystemExit: 3"),
        ("too few", "`reward` scored (3,) where 2 responses of up to 8 steps ask for (2,) or (2, 8)"),
        ("a list", "`reward` must return a Score, got a list"),
        ("nothing", "must give Score(tensor), got nothing"),
        ("complex", "no tensor of numbers (torch.complex64"),
    ],
)
def test_what_goes_wrong_in_it_is_told_with_its_name(misbehaving: Any, what: str, said: str) -> None:
    with pytest.raises(ComponentError) as caught:
        asked(misbehaving, what, "another"[:7])
    assert said in str(caught.value)
    assert "`misbehaves` in a process of its own, p.yaml:3: it " in str(caught.value)
    assert asked(misbehaving, "fine").tolist() == [4.0]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("killed", "was killed by SIGKILL"),
        ("exits", "ended its process with code 7; the last that it printed:\n    about to leave"),
        (
            "segfaults",
            "was killed by SIGSEGV; the last that it printed:\n    Fatal Python error: Segmentation fault",
        ),
    ],
)
def test_a_process_that_dies_is_begun_again(misbehaving: Any, what: str, said: str) -> None:
    with pytest.raises(ComponentError, match=re.escape(said)) as caught:
        asked(misbehaving, what)
    assert "`misbehaves`" in str(caught.value)
    assert asked(misbehaving, "fine").tolist() == [4.0]  # set up again


@pytest.mark.parametrize("what", ["hangs", "hangs in C"])
def test_what_hangs_is_ended(what: str) -> None:
    with isolated("Misbehaves", seconds=0.5) as one:
        one.setup(run())
        started = time.monotonic()
        with pytest.raises(ComponentError, match=r"`misbehaves`.* did not answer within 0\.5 seconds"):
            asked(one, what)
        assert time.monotonic() - started < 5


def test_memory_without_end_is_taken_from_it() -> None:
    with isolated("Misbehaves", memory=2**30) as one:
        assert asked(one, "fine").tolist() == [4.0]
        with pytest.raises(ComponentError, match=r"took 1(\.\d+)? GiB of memory, more than `memory: 1 GiB`"):
            asked(one, "allocates")


def test_what_is_not_finite_comes_as_it_is(misbehaving: Any) -> None:
    """What a run does then is the same as for any reward: `train.on_bad_reward`."""
    assert asked(misbehaving, "nan", "b").isnan().all()
    infinite = asked(misbehaving, "infinite", "b")
    assert infinite.dtype == torch.float64 and infinite.tolist() == [-torch.inf, -torch.inf]


def test_nothing_in_it_changes_the_run(misbehaving: Any) -> None:
    given, before = rollout(["mutates", "b"]), rollout(["mutates", "b"])
    stands = os.getcwd(), torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state()
    misbehaving.reward(run=run(), rollout=given)
    assert asked(misbehaving, "settings", "b").dtype == torch.float64
    assert asked(misbehaving, "later").dtype == torch.float32  # they are set back there, as they are in a run
    assert torch.equal(given.actions_NT, before.actions_NT) and given.texts == before.texts
    assert stands[:3] == (os.getcwd(), torch.get_default_dtype(), torch.get_num_threads())
    assert torch.equal(stands[3], torch.get_rng_state())


def test_megabytes_of_words_are_kept_short(tmp_path: Path) -> None:
    with isolated("Misbehaves") as one:
        one._pool.log = tmp_path / "served" / "misbehaves.log"
        assert asked(one, "prints").tolist() == [6.0]
        assert 0 < one._pool.log.stat().st_size <= 2**20


@pytest.mark.slow
def test_asked_again_after_a_failure(tmp_path: Path) -> None:
    """Whether it raised or its process died; the second answer counts."""
    for what in ("raises", "killed"):
        with isolated("Misbehaves", options={"once": tmp_path / what}, retries=1) as one:
            assert asked(one, what, "b").tolist() == [float(len(what)), 1.0]


def test_how_often_it_was_asked_is_told() -> None:
    with isolated("Misbehaves", retries=1) as one, pytest.raises(ComponentError, match=r"\(asked 2 times\)"):
        asked(one, "raises")


def test_the_run_is_not_there() -> None:
    with (
        isolated("AsksTheRun") as one,
        pytest.raises(ComponentError, match=r"asks for run\.rng, which a reward in"),
    ):
        asked(one, "a")


def test_what_cannot_travel_is_named() -> None:
    from rlalign import Example
    from rlalign.serving.questions import groups_of

    given = rollout(["a"])
    odd = Example(id="odd", prompt="p", meta={"x": object()})
    given.__dict__["examples"] = (odd,)
    with pytest.raises(ComponentError, match="example `odd` holds a object, which cannot be sent"):
        groups_of(given)


def test_actions_that_are_numbers_travel() -> None:
    from rlalign.serving.questions import groups_of

    given = rollout(["a", "b"])
    given.__dict__["actions_NT"] = torch.full_like(given.actions_NT, torch.inf, dtype=torch.float32)
    (_, group), *_ = groups_of(given)
    assert group["dtype"] == "float32" and {"~": "float", "of": "inf"} in group["responses"][0]["actions"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Stateful", "keeps a state"),
        ("Listens", "has a hook `iteration_done`; only `reward` and `evaluate` can be served"),
        ("Reads", "declares `needs`"),
    ],
)
def test_what_cannot_be_served(name: str, said: str) -> None:
    assert said in str(unservable(real(name)))
    assert unservable(real("Sees")) is None


@pytest.mark.slow
def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    """In the same iteration, by whoever reads the record: scores and measures, to the bit."""
    given, record = rollout(["a bc", "d", "e"], samples=3), RunDir(tmp_path)
    found = []
    for name in ("Sees", "AtRandom", "AtRandom"):
        with isolated(name) as one:
            one.answers = Answers(lambda: record)
            found.append(one.reward(run=run(4), rollout=given))
            if name == "Sees":
                measured = one.evaluate(run=run(4), rollout=given)
                one.answers = Answers(lambda: record)  # as another process reads it
                assert one.evaluate(run=run(4), rollout=given) == measured
                assert measured == {"words": 4.0, "worst": float("-inf"), "tenth": 0.1}
                again = one.reward(run=run(4), rollout=given)
                assert again.value.equal(found[0].value) and again.value.dtype == torch.float64
                assert again.metrics["meta"].equal(found[0].metrics["meta"])
            else:
                assert not one.reward(run=run(5), rollout=given).value.equal(found[-1].value)
    assert found[1].value.equal(found[2].value)


# -- ahead -------------------------------------------------------------------------------------------------------


def test_scoring_ahead_does_not_wait_and_is_not_done_twice(tmp_path: Path) -> None:
    whole = rollout(["a", "bb", "ccc", "dddd", "eeeee", "f"], samples=2)
    part, rest = whole.take(torch.tensor([4, 5])), whole.take(torch.tensor([0, 1]))
    with isolated("Slow") as one:
        one._pool.log = tmp_path / "served" / "slow.log"
        one.setup(run())
        started = time.monotonic()
        one.ahead(run=run(), rollout=part)
        one.ahead(run=run(), rollout=rest)
        assert time.monotonic() - started < 0.4
        assert one.reward(run=run(), rollout=whole).value.tolist() == [1, 2, 3, 4, 5, 1]
        counts = re.findall(r"asked for (\d)", one._pool.log.read_text())
        assert counts == ["2", "2", "2"]
        assert one._begun == {}


def test_what_was_answered_ahead_is_not_asked_again_because_something_else_failed(tmp_path: Path) -> None:
    """As where prompts at which it fails are left out, and the others asked for alone."""
    whole = rollout(["a", "b", "raises", "c"], samples=1)
    parts = [whole.take(torch.tensor([i])) for i in range(4)]
    with isolated("Counts", retries=0) as one:
        one._pool.log = tmp_path / "served" / "counts.log"
        one.setup(run())
        for part in parts:
            one.ahead(run=run(), rollout=part)
        with pytest.raises(ComponentError, match="no such word"):
            one.reward(run=run(), rollout=whole)
        assert one.reward(run=run(), rollout=parts[3]).value.tolist() == [1.0]
        with pytest.raises(ComponentError, match="no such word"):
            one.reward(run=run(), rollout=parts[2])
        one.close()  # its log is whole then
        asked = re.findall(r"asked for (.*)", one._pool.log.read_text())
        assert asked == ["a", "b", "raises", "c", "raises"]


def test_what_was_begun_ahead_for_another_iteration_is_left() -> None:
    with isolated("Slow") as one:
        one.ahead(run=run(0), rollout=rollout(["aa"]))
        assert one.reward(run=run(1), rollout=rollout(["aa"])).value.tolist() == [2.0]
        assert one._begun == {}


def test_what_goes_wrong_ahead_is_told_when_it_is_collected() -> None:
    with isolated("Misbehaves") as one:
        one.ahead(run=run(), rollout=rollout(["raises"]))
        with pytest.raises(ComponentError, match="no such word"):
            one.reward(run=run(), rollout=rollout(["raises"]))
        assert asked(one, "fine").tolist() == [4.0]


def test_after_a_failure_nothing_else_that_was_begun_ahead_is_tried(tmp_path: Path) -> None:
    """Else a reward that hangs would hold the run up once for every part of a batch."""
    whole = rollout(["raises"] * 6)
    parts = [whole.take(torch.tensor([row])) for row in range(6)]
    with isolated("Misbehaves", options={"calls": tmp_path / "calls"}, retries=0) as one:
        one.setup(run())
        for part in parts:
            one.ahead(run=run(), rollout=part)
        with pytest.raises(ComponentError, match="no such word"):
            one.reward(run=run(), rollout=parts[-1])
        assert (tmp_path / "calls").read_text() == "."
        with pytest.raises(
            ComponentError, match="no such word"
        ):  # asked for itself, to learn whether it is at fault
            one.reward(run=run(), rollout=parts[0])
        assert (tmp_path / "calls").read_text() == ".."
        assert asked(one, "fine").tolist() == [4.0]
        assert (tmp_path / "calls").read_text() == "..."


def test_its_thread_ends_with_it_and_nothing_waits_for_that() -> None:
    with isolated("Sees") as one:
        asked(one, "abc")
        (thread,) = [t for t in threading.enumerate() if t.name == "asks-sees" and t.is_alive()][-1:]
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(ComponentError, match="was ended"):
        asked(one, "other")
