"""`rlalign diff`: what differs, since when, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlalign_compare.command import diff
from rlalign_compare.settings import differing, settings

from .conftest import BANDIT, call


def said(*names: object) -> str:
    status, text = call(diff, *names)
    assert status == 0, text
    return text


def rows(text: str) -> list[str]:
    """Its lines, spaces made one."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_another_seed_is_the_reason(made: Path) -> None:
    text = said("slow-0", "slow-1")
    assert "seed 0 (default) | 1" in rows(text)
    assert "likely because of seed: nothing else differs that numbers depend on" in text


def test_the_same_run_twice(made: Path) -> None:
    text = said("slow-0", "again")
    assert "nothing that is written down of them differs" in text
    assert "agree to the bit wherever both have them, times apart" in text and "likely" not in text


def test_one_option_is_the_reason_and_the_first_row_is_told(made: Path) -> None:
    text = said("slow-0", "fast-0")
    assert "train.lr 0.05 | 0.2" in rows(text)
    assert "first differ in iteration 1 of rloo; before it 1 evaluation agrees to the bit" in text
    assert "lr 0.05 | 0.2: 0.15 apart (75 %)" in rows(text)
    assert "likely because of train.lr" in text


def test_a_digest_that_follows_from_a_setting_is_no_other_reason(made: Path) -> None:
    text = said("slow-0", "others")
    assert "(follows from evaluate.examples)" in text and "likely because of evaluate.examples" in text


def test_another_version_and_a_metric_that_is_rounded_otherwise(made: Path, edited) -> None:
    lock = json.loads((made / "again/lock.json").read_text())
    edited("again/lock.json", lock["plugins"]["rlalign"]["code"], "ab" * 32)
    edited("again/lock.json", f'"torch": "{lock["packages"]["torch"]}"', '"torch": "1.0"')
    path = made / "again/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["grad_norm"] *= 1 + 1e-7
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = said("slow-0", "again")
    assert f"torch {lock['packages']['torch']} | 1.0" in rows(text) and "rlalign " in text
    assert (
        "first differ in iteration 2 of rloo; before it 1 iteration and 1 evaluation agree to the bit" in text
    )
    assert "as little as rounding makes" in text and "2 things differ" in text


def test_without_any_difference_it_says_what_is_left(made: Path) -> None:
    path = made / "again/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["reward/total"] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "nothing that is written down differs, so some operation" in said("slow-0", "again")


def test_as_json(made: Path) -> None:
    status, text = call(diff, "slow-0", "fast-0", "--json")
    found = json.loads(text)
    assert status == 0
    assert found["differs"] == [{"section": "settings", "key": "train.lr", "a": 0.05, "b": 0.2}]
    assert (found["diverged"]["iteration"], found["diverged"]["metrics"]["lr"]) == (1, [0.05, 0.2])


def test_two_files_and_the_defaults_that_one_spells_out(tmp_path: Path) -> None:
    one, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    one.write_text("task: bandit\npolicy: table\nrewards: [kl]\nalgorithm: rloo\ntrain: {iterations: 3}\n")
    other.write_text(
        "task: bandit\npolicy: {table: {steps: 1}}\nrewards: [kl: {coef: 0.1}]\n"
        "algorithm: [{rloo: {baseline: others}}]\n"
        "train: {iterations: 3, lr: 1.0e-5, schedule: {shape: cosine}}\nseed: 0\n"
    )
    text = said(one, other)
    lines = rows(text)
    assert "train.schedule.shape constant (default) | cosine" in lines
    assert not any("train.lr" in line or "steps" in line or "baseline" in line for line in lines)
    assert "metrics" not in text


def test_a_file_and_a_run_are_two_things(made: Path) -> None:
    status, text = call(diff, "slow-0", made / "slow-1/pipeline.yaml")
    assert status == 2 and "name two runs, or two pipeline files" in text and text.count("\n") == 1
    status, text = call(diff, "slow-0", "missing.yaml")
    assert status == 2 and text == "error: missing.yaml: there is no such file\n"


def changed(**changes: object) -> dict[str, object]:
    found = differing(settings(BANDIT), settings({**BANDIT, **changes}))
    return {path: (one and one.value, other and other.value) for path, (one, other) in found.items()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, {"seed": (0, 1)}),
        ({"algorithm": ["rloo"]}, {}),
        ({"rewards": ["bandit-payout", {"kl": {"coef": 0.5}, "weight": 1.0}]}, {}),
        (
            {"rewards": [{"kl": {"coef": 0.5}}, "bandit-payout"]},
            {"rewards": (["bandit-payout", "kl"], ["kl", "bandit-payout"])},
        ),
        ({"phases": [{"algorithm": "rloo"}]}, {}),
        ({"task": {"bandit": {"payouts": [1.0, 2.0]}}}, {"task.payouts": ([2.5, 2.0, 1.0], [1.0, 2.0])}),
        ({"folder": "/elsewhere"}, {}),
    ],
)  # fmt: skip
def test_paths_and_values(changes: dict[str, object], expected: dict[str, object]) -> None:
    assert changed(**changes) == expected


def test_what_only_one_of_them_has_comes_without_its_defaults() -> None:
    without = {key: value for key, value in BANDIT.items() if key != "evaluate"}
    found = differing(settings(BANDIT), settings(without))
    assert set(found) == {
        "evaluate",
        "evaluate.every",
        "evaluate.examples",
        "evaluate.generation.samples",
    }
