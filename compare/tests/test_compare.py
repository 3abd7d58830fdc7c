"""`rlalign compare`: rows, tests, and what cannot be said."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from scipy import stats

from rlalign_compare.command import compare
from rlalign_compare.runs import Run, by_prompt
from rlalign_compare.shown import NOTHING

from .conftest import call

SEEDS = [f"{arm}-{seed}" for arm in ("slow", "fast") for seed in range(3)]


def data(*names: str) -> dict:
    status, said = call(compare, *names, "--json")
    assert status == 0, said
    return json.loads(said)


def last(made: Path, name: str, metric: str = "eval/total") -> float:
    rows = [json.loads(line) for line in (made / name / "metrics.jsonl").read_text().splitlines()]
    return [row[metric] for row in rows if metric in row][-1]


def test_seeds_of_one_pipeline_are_one_row_with_a_t_interval(made: Path) -> None:
    slow, fast = data(*SEEDS)["rows"]
    assert (slow["seeds"], fast["seeds"]) == ([0, 1, 2], [0, 1, 2])
    values = [last(made, f"slow-{seed}") for seed in range(3)]
    found = slow["evaluations"]["eval/total"]["last"]
    assert found["mean"] == pytest.approx(fmean(values))
    half = stats.t.ppf(0.975, 2) * stats.tstd(values) / math.sqrt(3)
    assert found["high"] - found["mean"] == pytest.approx(half)
    assert slow["tokens"]["mean"] == 4 * 8 * 4


def test_rows_are_tested_over_the_seeds_that_they_share(made: Path) -> None:
    tests = {one["metric"]: one for one in data(*SEEDS)["tests"]}
    differences = [last(made, f"fast-{seed}") - last(made, f"slow-{seed}") for seed in range(3)]
    one = tests["eval/total"]
    assert one["over"] == "seeds" and one["difference"]["mean"] == pytest.approx(fmean(differences))
    assert one["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_one_seed_says_nothing_of_others(made: Path) -> None:
    status, said = call(compare, "slow-0", "fast-0")
    assert status == 0
    assert "slow-0, fast-0: one seed each" in said and "nothing can be tested" in said and "p =" not in said


def test_the_same_run_twice_counts_once(made: Path) -> None:
    found = data("slow-0", "again", "slow-1")
    assert len(found["rows"]) == 1 and found["rows"][0]["seeds"] == [0, 1]
    assert any(
        "slow-0 and again have one seed, 0" in note and "same to the bit" in note for note in found["notes"]
    )
    assert len(data("slow-0", "runs/slow-0")["rows"][0]["runs"]) == 1


def test_budgets_that_differ_are_told(made: Path) -> None:
    assert any("128 and 64 responses" in note for note in data("slow-0", "shorter")["notes"])


def test_other_evaluation_data_are_told_and_not_tested(made: Path, edited) -> None:
    (note,) = [note for note in data("slow-0", "others")["notes"] if "other data" in note]
    assert "bandit/val[:8] and bandit/val[:6]" in note
    lock = json.loads((made / "fast-2/lock.json").read_text())
    digest = lock["data"]["bandit/val[:8]"]
    for seed in range(3):
        edited(f"fast-{seed}/lock.json", digest, "0" * 64)
    found = data(*SEEDS)
    assert found["tests"] == [] and any("has another digest" in note for note in found["notes"])


def test_a_run_that_stopped_early_is_in_no_mean(made: Path) -> None:
    path = made / "slow-2/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    (made / "slow-2/model").rename(made / "gone")
    found = data("slow-0", "slow-1", "slow-2")
    assert found["rows"][0]["seeds"] == [0, 1]
    assert any("slow-2 has come to iteration 2 of 4, so no mean counts it" in note for note in found["notes"])
    assert any("slow-2 is not finished" in note for note in found["notes"])


def test_another_version_is_told(made: Path, edited) -> None:
    torch = json.loads((made / "fast-0/lock.json").read_text())["packages"]["torch"]
    edited("fast-0/lock.json", f'"torch": "{torch}"', '"torch": "1.0"')
    assert any("not run with the same versions" in note for note in data("slow-0", "fast-0")["notes"])


def test_scores_of_prompts_are_paired(made: Path) -> None:
    for name, shift in (("slow-0", 0.0), ("fast-0", 0.25)):
        path = made / name / "samples.jsonl"
        where = Run(name).shown[-1]
        rows = [
            {**where, "prompt": f"prompt {i}", "scores": {"bandit-payout": float(i % 3) + shift}}
            for i in range(8)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (test,) = data("slow-0", "fast-0")["tests"]
    assert (test["metric"], test["over"], test["difference"]["count"]) == ("eval/bandit-payout", "prompts", 8)
    assert test["difference"]["mean"] == pytest.approx(0.25) and test["p"] == pytest.approx(2 / 2**8)
    (made / "fast-0/samples.jsonl").write_text(path.read_text().replace("prompt 3", "another"))
    assert any("prompts are not the same" in note for note in data("slow-0", "fast-0")["notes"])


def test_answers_to_one_prompt_are_one_example() -> None:
    rows = [{"prompt": p, "scores": {"a": x}} for p, x in (("x", 1.0), ("x", 3.0), ("y", 5.0))]
    assert by_prompt(rows) == [("x", {"a": 2.0}), ("y", {"a": 5.0})]


def test_the_table_is_for_reading(made: Path) -> None:
    status, said = call(compare, *SEEDS)
    assert status == 0
    lines = said.splitlines()
    assert lines[0].split() == ["runs", "seeds", "iterations", "reward", "KL", "tokens", "seconds", "memory"]
    assert any(line.startswith("1  slow-0 and 2 more  0, 1, 2") for line in lines)
    assert any(line.startswith("  2 − 1: +") and "over 3 seeds" in line for line in lines)


def test_memory_is_the_most_that_a_phase_took(made: Path) -> None:
    sizes = {"slow-0": [1, 2], "slow-1": [4], "slow-2": [3]}
    for name, some in sizes.items():
        phases = {f"phase {i}": {"measured": {"memory": size * 2**20}} for i, size in enumerate(some)}
        (made / name / "costs.json").write_text(
            json.dumps({**phases, "other": {"estimated": {"memory": 2**40}}})
        )
    try:
        status, said = call(compare, "slow-0", "slow-1", "slow-2", "fast-0")
        assert status == 0 and "3 MiB" in said and said.splitlines()[2].endswith(NOTHING)
    finally:
        for name in sizes:
            (made / name / "costs.json").unlink()


def test_no_such_run(made: Path) -> None:
    status, said = call(compare, "slow-0", "nobody")
    assert status == 2 and said.startswith("error: nobody: there is no such run")


@pytest.mark.parametrize("arguments", [["compare", "slow-0", "fast-0"], ["diff", "slow-0", "fast-0"]])
def test_answers_at_once_and_without_torch(arguments: list[str], made: Path) -> None:
    """In under a second of a processor's time, the best of three."""
    code = (
        "import sys\nfrom rlalign.cli.commands import program\n"
        "from rlalign_compare import command\n"
        "program.add_command(command.compare)\nprogram.add_command(command.diff)\n"
        f"program({arguments!r}, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'scipy.stats' in sys.modules)\n"
    )
    took = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = os.times()
        took.append(
            after.children_user - before.children_user + after.children_system - before.children_system
        )
    assert min(took) < 1.0
