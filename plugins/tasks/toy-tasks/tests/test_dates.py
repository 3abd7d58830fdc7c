"""toy-dates: what counts as a date, and that a table learns to write one."""

from __future__ import annotations

import pytest

from rlalign.testing import ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import ToyDates, has_date

DIGITS = [*"0123456789", "-", "end"]
WORLD = {
    "task": {"toy-dates": {"spaced": True}},
    "policy": {"table": {"actions": DIGITS, "end": "end", "steps": 16, "state": "step"}},
}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", False),
        ("2031-04-17", True),
        ("on 2031-04-17 at noon", True),
        ("9999-99-99", True),  # digits, not a calendar: as in RL4LMs
        ("12031-04-171", True),
        ("17-04-2031", False),
        ("2031-4-17", False),
        ("2031 04 17", False),
        ("٢٠٣١-٠٤-١٧", False),
    ],
)
def test_has_date(text, expected):
    assert has_date(text) == expected


def test_examples():
    task = ToyDates(ToyDates.Config(size=200))
    examples = task.examples("train")
    assert all(e.scores == tuple(map(float, map(has_date, e.responses))) for e in examples)
    scores = [s for e in examples for s in e.scores]
    assert sum(scores) / len(scores) == pytest.approx(0.2, abs=0.05)
    assert [e.responses for e in task.examples("val")] != [e.responses for e in examples]
    spaced = ToyDates(ToyDates.Config(size=200, spaced=True)).examples("train")
    for one, other in zip(spaced, examples, strict=True):
        assert [r.split() for r in one.responses] == [list(r.replace(" ", "")) for r in other.responses]
    assert ToyDates(ToyDates.Config(size=1, responses=0)).examples("train")[0].responses == ()


class TestDates(ComponentTests):
    component = "dates"
    options = {"spaced": True}
    pipeline = {**WORLD, "rewards": [{"dates": {"spaced": True}}]}


def test_a_table_learns_to_write_one(tmp_path):
    pipeline = {
        **WORLD,
        "rewards": [{"dates": {"spaced": True}}, {"kl": {"coef": 0.02}}],
        "algorithm": "rloo",
        "generation": {"samples": 16, "max_new_tokens": 16},
        "train": {"iterations": 60, "prompts": 16, "lr": 0.1},
        "evaluate": {"examples": 50, "use": ["dates"], "generation": {"samples": 4}},
    }
    finished, _ = run(tmp_path, pipeline)
    assert finished.metrics["eval/dates"] > 0.85  # at random 0.02


def test_logged_dates_can_be_read_by_a_table(tmp_path):
    pipeline = {**WORLD, "algorithm": "reinforce", "responses": "logged", "train": {"iterations": 1}}
    finished, _ = run(tmp_path, pipeline)
    assert 0.1 < finished.metrics["reward/logged"] < 0.3


class TestToyDates(TaskTests):
    component = "toy-dates"
    shared = ("prompts",)  # all of them the same
    any_split = True
