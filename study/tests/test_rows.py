"""Results of one machine and of several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlalign_study import plan
from rlalign_study.rows import Results, Row


@pytest.fixture
def some(study, row):
    return [row(one, reward=i / 8) for i, one in enumerate(plan.tuning(study, "three"))]


def test_a_row_comes_back_from_its_line(some, tmp_path):
    path = tmp_path / "results/small.jsonl"
    Results().add(some[3], path)
    assert list(Results.read(path.parent).rows.values()) == [some[3]]


def test_two_machines_results_lie_in_one_folder(study, some, tmp_path):
    for name, rows in (("here", some[:5]), ("there", some[3:])):
        for one in rows:
            Results().add(
                replace(one, made={"machine": name}, metrics={**one.metrics, "seconds": len(name)}),
                tmp_path / f"{name}.jsonl",
            )
    found = Results.read(tmp_path)
    assert found.notes == []
    planned = plan.tuning(study, "three")
    assert set(found.of(planned)) == {one.key for one in planned}
    assert {row.made["machine"] for row in found.of(planned[:5]).values()} == {"here"}


def test_a_conflict_is_named_and_the_first_counts(some, tmp_path):
    Results().add(some[0], tmp_path / "a.jsonl")
    Results().add(replace(some[0], metrics={**some[0].metrics, "final.reward": 0.9}), tmp_path / "b.jsonl")
    found = Results.read(tmp_path)
    (note,) = found.notes
    assert some[0].key in note
    assert "a.jsonl:1 and b.jsonl:1" in note
    assert "final.reward 0.0, 0.9" in note
    assert list(found.rows.values()) == [some[0]]


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_that_was_made_stands_above_one_that_failed(some, tmp_path, order):
    failed = replace(some[0], status="failed", why="killed", metrics={}, curve={})
    for one in [failed, some[0]][::order]:
        Results().add(one, tmp_path / "a.jsonl")
    found = Results.read(tmp_path)
    assert found.notes == []
    assert [row.status for row in found.rows.values()] == ["done"]


def test_rows_of_another_plan_are_passed_over(study, some, tmp_path):
    Results().add(replace(some[0], hash="another"), tmp_path / "a.jsonl")
    assert Results.read(tmp_path).of(plan.tuning(study, "three")) == {}


def test_a_line_that_was_cut_off_is_named_and_the_next_one_is_whole(some, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(some[0].line[:50])
    Results().add(some[1], path)
    found = Results.read(tmp_path)
    assert [row.key for row in found.rows.values()] == [some[1].key]
    assert found.notes[0].startswith("a.jsonl:1: is no row of results")


def test_numbers_keep_five_digits_and_overrides_all_of_them():
    one = Row("main", "w", 1, "h", "done", metrics={"x": 1 / 3}, overrides={"train.lr": 1 / 3})
    assert '"x":0.33333,' in one.line.replace("}", ",")
    assert str(1 / 3) in one.line
