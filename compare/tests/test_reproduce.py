"""`rlalign reproduce`: to the bit, within a tolerance, or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlalign_compare.again import verdict
from rlalign_compare.command import reproduce

from .conftest import call


def shift(path: Path, by: float) -> None:
    """Another reward in the second iteration of a run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["reward/total"] += by
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_to_the_bit_into_a_folder_beside_it(made: Path) -> None:
    status, said = call(reproduce, "slow-0", "--plain")
    assert status == 0, said
    assert "code, versions, data and machine are as when slow-0 began" in said
    assert "reproduced: 4 iterations and 3 evaluations of slow-0" in said and "to the bit" in said
    assert (made / "slow-0-again/model").is_dir()


def test_a_prefix_has_the_schedule_of_the_whole(made: Path) -> None:
    status, said = call(reproduce, "fast-1", "--iterations", 2, "--to", made.parent / "some/where", "--plain")
    assert status == 0, said
    assert "2 iterations and 2 evaluations" in said
    assert not (made.parent / "some/where/model").exists()


def test_other_figures_are_a_status_of_their_own(made: Path, edited) -> None:
    shift(made / "slow-1/metrics.jsonl", 0.001)
    torch = json.loads((made / "slow-1/lock.json").read_text())["packages"]["torch"]
    edited("slow-1/lock.json", f'"torch": "{torch}"', '"torch": "1.0"')
    status, said = call(reproduce, "slow-1", "--to", made.parent / "strict", "--plain")
    assert status == 3
    assert f"packages.torch: 1.0 then, {torch} now" in said
    assert "off since here: iteration 2 of rloo: reward/total" in said
    assert "slow-1 came out otherwise: first off in iteration 2 of rloo" in said
    assert "`--tolerance 0.001` would accept it" in said
    status, said = call(reproduce, "slow-1", "--tolerance", 0.001, "--to", made.parent / "kind", "--plain")
    assert status == 0 and "within 0.001; the furthest is" in said


def test_a_run_that_was_killed_is_run_as_far_as_it_came(made: Path) -> None:
    path = made / "slow-2/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    (made / "slow-2/model").rename(made / "gone")
    status, said = call(reproduce, "slow-2", "--plain")
    assert status == 0, said
    assert "slow-2 did not come to its end: its first 2 iterations are run again" in said
    assert "reproduced: 2 iterations and 1 evaluation of slow-2" in said


def test_no_more_iterations_than_there_are(made: Path) -> None:
    status, said = call(reproduce, "slow-0", "--iterations", 9)
    assert status == 2 and "slow-0 has 4, so no more can be compared" in said


@pytest.mark.parametrize(("tolerance", "off"), [(0.0, 1), (1e-6, 0)])
def test_a_share_of_the_figure_of_one_at_least(tolerance: float, off: int) -> None:
    def rows(x: float) -> list[dict]:
        return [
            {"phase": "p", "repeat": 0, "iteration": 1, "block": 0, "a": x, "b": float("nan"), "time/x": x}
        ]

    found = verdict(rows(1000.0), rows(1000.0005), 1, tolerance)
    assert (found.figures, len(found.off)) == (2, off)
    assert found.furthest == pytest.approx(5e-7)


def test_a_figure_that_is_gone_is_no_success() -> None:
    was = [{"phase": "p", "repeat": 0, "iteration": 1, "block": 0, "a": 1.0}]
    assert verdict(was, [], 1, 0.0).missing == ["iteration 1 of p"]
