"""The studies of benchmarks/agentic: their exact parts are right, and their plans keep what is promised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from rlalign_study import plan, report
from rlalign_study.analysis import Found
from rlalign_study.file import Study, module_of
from rlalign_study.rows import Results

AGENTIC = Path(__file__).resolve().parents[1] / "benchmarks/agentic"


@pytest.mark.parametrize(("name", "arms", "seeds"), [("teams_rl", 5, 10), ("lamp", 6, 30)])
def test_all_arms_run_on_the_same_seeds(name: str, arms: int, seeds: int) -> None:
    study = Study.read(AGENTIC / name / "study.yaml")
    for world in study.worlds:
        first = {arm: plan.settings(study, world, arm)[0] for arm in study.arms_of(world)}
        runs = Counter(run.arm for run in plan.main(study, world, first))
        assert len(runs) == arms and set(runs.values()) == {seeds}


@pytest.mark.parametrize(
    ("file", "count"),
    [("reflect_rl/study", 72), ("teams_rl/study", 50), ("linvit/prior", 80), ("linvit/search", 150)],
)
def test_the_stored_tables_come_again_to_the_digit(file: str, count: int) -> None:
    study = Study.read(AGENTIC / f"{file}.yaml")
    results = Results.read(study.folder / study.results)
    worlds = [Found(study, world, results) for world in study.worlds]
    assert sum(len(found.rows) for found in worlds) == count and not any(found.waiting for found in worlds)
    made = report.table(study, worlds)
    assert made == (study.folder / study.results / "table.md").read_text().splitlines()


def test_the_released_policy_is_shifted_as_the_released_code_is() -> None:
    """Of six standard Gaussian numbers, one with .3 or .7 more is the largest with .2375 and .353."""
    gaussian = module_of(AGENTIC / "teams_rl/gaussian.py")
    mean_SA, deviation_A = torch.zeros(3, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    mean_SA[1, 0], mean_SA[2, 1] = 0.3, 0.7
    chances_SA = gaussian.largest(mean_SA, deviation_A)
    assert chances_SA.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert chances_SA[0].tolist() == pytest.approx([1 / 6] * 6)
    assert float(chances_SA[1, 0]) == pytest.approx(0.2375, abs=1e-4)
    assert float(chances_SA[2, 1]) == pytest.approx(0.353, abs=5e-4)
    drawn = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide_A = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    seen_A = torch.bincount((mean_SA[1] + wide_A * drawn).argmax(1), minlength=6) / len(drawn)
    assert gaussian.largest(mean_SA[1:2], wide_A)[0].tolist() == pytest.approx(seen_A.tolist(), abs=0.005)


def test_what_a_policy_is_worth() -> None:
    gaussian = module_of(AGENTIC / "teams_rl/gaussian.py")
    assert gaussian.worth([[1 / 6] * 6] * 7) == pytest.approx(3.141666666666667, abs=1e-9)


def test_captions_lie_in_three_of_ten_cells_and_always_the_same() -> None:
    rooms = module_of(AGENTIC / "lamp/rooms.py")
    from rlalign_plugin_lamp.room import captions, observations

    for size in (7, 9, 11):
        said = observations(size)
        assert rooms.mistaken(said) == rooms.mistaken(said[::-1])[::-1]
        wrong = sum(rooms._number(one.partition(":")[0]) < rooms.WRONG for one in said) / len(said)
        assert wrong == pytest.approx(0.3, abs=0.12)
        moved = [a != b for a, b in zip(captions(said), rooms.mistaken(said), strict=True)]
        assert 0 < sum(moved) / len(said) <= wrong
        assert len(set(rooms.random(said))) == 4
