"""benchmarks/offline: its logs, the budgets of its arms, what it reads off runs, its answers."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # benchmarks/offline/large.py is in no installed package

from benchmarks.offline import large

from rlalign.testing import ComponentTests
from rlalign_plugin_toy_tasks.reviews import REVIEWS
from rlalign_study import plan, runner
from rlalign_study.analysis import Found
from rlalign_study.file import Study, module_of
from rlalign_study.rows import Results, Row
from rlalign_study.worker import Done, curves

FOLDER = Path(large.__file__).parent
STUDY = Study.read(FOLDER / "study.yaml")
logs, measures, limits, texts_of = (
    module_of(FOLDER / f"{name}.py") for name in ("logs", "measures", "limits", "../common/texts")
)
GIVEN = STUDY.given_of("noisy") | {"prompts": 64}
ALOL, KL = "a-lol", "a-lol-kl"
ONLINE = ("raft", "rest", "iterative-dpo")


# -- logs ---------------------------------------------------------------------------------------------------


def test_a_score_is_half_of_one_and_the_sentiment_and_nothing_outside_the_language():
    assert logs.score("the plot was", "great .") == pytest.approx((1 + 1 / 1.5) / 2)
    assert logs.score("the plot was", "dull .") == pytest.approx((1 - 1 / 1.5) / 2)
    assert logs.score("the plot was", "great great .") == 0


@pytest.fixture(scope="module")
def noisy():
    return logs.rows(GIVEN, "noisy", 3)


def test_half_of_a_noisy_log_is_bad_in_three_ways(noisy):
    kinds = Counter(kind for row in noisy for kind in row["meta"]["kinds"])
    assert sum(kinds.values()) == 256
    assert kinds[logs.GOOD] == pytest.approx(128, abs=24)
    assert all(kinds[kind] > 20 for kind in logs.BAD)


def test_the_kinds_are_as_good_as_they_are_called(noisy):
    found: dict[str, list[float]] = {}
    for row in noisy:
        assert row["scores"] == [logs.score(row["prompt"], text) for text in row["responses"]]
        for kind, score in zip(row["meta"]["kinds"], row["scores"], strict=True):
            found.setdefault(kind, []).append(score)
    right = {kind: sum(s > 0 for s in scores) / len(scores) for kind, scores in found.items()}
    mean = {kind: sum(scores) / len(scores) for kind, scores in found.items()}
    assert right[logs.GOOD] > 0.85
    assert right[logs.WORST] > 0.85
    assert right[logs.HOT] < 0.5
    assert right[logs.REPLACED] < 0.5
    assert max(mean[kind] for kind in logs.BAD) < mean[logs.GOOD] / 2


def test_replaced_words_are_words_of_the_language(noisy):
    words = set(REVIEWS.words)
    assert all(set(text.split()) <= words for row in noisy for text in row["responses"])


def test_a_log_is_the_same_whenever_it_is_written(noisy, tmp_path):
    logs.written(GIVEN, "noisy", 3, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()] == noisy
    splits = {split: (tmp_path / f"{split}.jsonl").read_text().splitlines() for split in ("val", "test")}
    assert {len(lines) for lines in splits.values()} == {GIVEN["held_out"]}
    assert splits["val"] != splits["test"]
    assert all("responses" not in json.loads(line) for lines in splits.values() for line in lines)
    found = logs.kinds(tmp_path / "train.jsonl")
    assert found["all.responses"] == 256
    assert found["good.grammar"] > 0.85


# -- the plan -------------------------------------------------------------------------------------------------


def test_every_arm_has_the_protocols_row():
    readme = (FOLDER / "README.md").read_text()
    for arm in STUDY.arms:
        assert f"| `{arm}` |" in readme
    assert "1e-4, 4e-4" in readme
    assert "96 optimiser steps" in readme


def phases(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    found = pipeline.get("phases", [pipeline])
    return [p for p in found if "fit-value" not in p["algorithm"] and p["algorithm"] != "collect"]


def per_step(phase: dict[str, Any]) -> float:
    """Responses that an optimiser step learns from; behind a threshold the most there can be."""
    train, listed = phase["train"], phase["algorithm"]
    items = [item for item in (listed if isinstance(listed, list) else [listed]) if isinstance(item, dict)]
    options = {name: value for item in items for name, value in item.items()}
    if "at-most" in options:
        return float(options["at-most"]["n"])
    one = "ending" in options or "best-of" in options
    a_prompt = 2 if "best-vs-worst" in listed else 1 if one else GIVEN["each"]
    return train["prompts"] * a_prompt / train.get("minibatches", 1)


def steps(pipeline: dict[str, Any]) -> int:
    total = 0
    for phase in phases(pipeline):
        train, listed = phase["train"], phase["algorithm"]
        ends = [x["ending"]["after"] for x in listed if isinstance(x, dict) and "ending" in x]
        each = train.get("epochs", 1) * train.get("minibatches", 1)
        total += (ends[0] if ends and isinstance(listed, list) else train["iterations"]) * each
    return total * pipeline.get("repeat", 1)


@pytest.mark.parametrize("arm", STUDY.arms)
@pytest.mark.parametrize("world", STUDY.worlds)
def test_all_settings_of_all_arms_have_the_same_budget(arm, world):
    some = [one for one in plan.tuning(STUDY, world) if one.arm == arm and one.seed == 1000]
    assert len(some) == 8
    for one in some:
        assert steps(one.pipeline) == 96
        assert {per_step(phase) for phase in phases(one.pipeline)} == {64}


def planned(arm: str) -> plan.Planned:
    """A main run of an arm at its first setting."""
    return plan.main(STUDY, "noisy", {arm: plan.settings(STUDY, "noisy", arm)[0]})[0]


def test_only_online_arms_are_rewarded_while_they_learn():
    for arm in STUDY.arms:
        pipeline = planned(arm).pipeline
        rewarded = [p for p in pipeline.get("phases", [pipeline]) if p.get("rewards")]
        assert bool([p for p in rewarded if p.get("name") != "value"]) == (arm in ONLINE)


class TestAtMost(ComponentTests):
    component = limits.AtMost
    options = {"n": 3}


class TestEnding(ComponentTests):
    component = limits.Ending
    options = {"after": 2}


# -- what is read off a run -----------------------------------------------------------------------------------


def test_distinct_n_by_hand():
    texts = ["a b c", "a b d", "e"]
    assert texts_of.distinct(texts, 1) == 5 / 7
    assert texts_of.distinct(texts, 2) == 3 / 4  # never across texts
    assert texts_of.distinct(["a"], 2) == 0


def test_a_final_measurement_from_exported_samples(monkeypatch):
    monkeypatch.setattr(texts_of, "COMPARED", 2)

    def row(texts: list[str], grammar: list[float], gated: list[float]) -> dict[str, object]:
        kl = [-1.0, -2.0]
        rewards = {"toy-grammar": grammar, "gated": gated, "toy-sentiment": [0.5, -0.5], "kl": kl}
        return {"responses": texts, "meta": {"rlalign": {"rewards": rewards}}}

    rows = [
        row(["a b c d", "e e e e"], [1.0, 0.0], [0.5, 0.0]),
        row(["a b c e", "a b c d"], [1.0, 1.0], [-0.5, 1]),
    ]
    end = texts_of.of_samples(rows)
    assert [end[k] for k in ("texts", "reward", "grammar", "kl")] == [4, (0.75 + 0.25) / 2, 0.75, 1.5]
    assert end["distinct"] == 3 / 4
    assert end["distinct_grammatical"] == 3 / 4  # abc, bcd, abc, bce
    assert "distinct_grammatical" not in texts_of.of_samples(rows[:1])


def test_steps_of_a_curve_begin_at_its_start_and_no_step_stands_twice():
    def row(step: int, gated: float) -> dict[str, float]:
        return {
            "iteration": step,
            "step": step,
            "eval/responses": 8.0,
            "eval/toy-grammar": 0.5,
            "eval/gated": gated,
        } | {
            "eval/toy-sentiment": 0.1,
            "eval/kl/per_response": 2.0,
            "eval/length": 9.0,
        }

    first = {"step": 40, "responses": 64.0, "tokens": 9, "iteration": 1}
    rows = [first, row(40, 0.1), row(56, 0.3), row(56, 0.9), row(72, 0.5)]
    made, _ = curves(rows, STUDY.metrics)
    assert (made["step"], made["reward"]) == ([0, 16, 32], [0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("arm", "row", "expected"),
    [
        ("sft", {"phase": "sft", "responses": 64.0, "groups": 16.0}, (64, 0.0)),
        ("dpo", {"phase": "dpo", "responses": 128.0, "groups": 30.0}, (60, 1 - 60 / 128)),
        ("a-lol", {"phase": "learn", "responses": 64.0, "groups": 64.0, "a-lol/kept": 0.4}, (64, 0.6)),
        ("raft", {"phase": "sft", "responses": 512.0, "groups": 128.0}, (256, 0.75)),
    ],
)
def test_what_was_learned_from_and_what_was_left_out(arm, row, expected, tmp_path):
    noise = {"phase": "value", "responses": 512.0, "groups": 512.0}
    rows = [noise, row] if arm == "a-lol" else [row]
    rows = [{"tokens": 0, **row} for row in rows]
    one = planned(arm)
    found = measures.of_run(Done(one, plan.fill(one.pipeline, work=tmp_path), tmp_path, tmp_path, rows))
    assert (found["learned"], found["left_out"]) == (expected[0], pytest.approx(expected[1], abs=1e-4))
    assert found["sampled"] == {"a-lol": 512, "raft": 512}.get(arm, 0)


def test_behind_a_threshold_the_share_of_log_and_samples_counts(tmp_path):
    log, grown = tmp_path / "logs/noisy-0/train.jsonl", tmp_path / "run/rows/grow-1.jsonl"
    for file, scores in ((log, [0.1, 0.2, 0.3, 0.9]), (grown, [0.7, 0.8, 0.1, 0.0])):
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"scores": scores}) + "\n")
    rows = [{"phase": "improve-1", "repeat": 0, "responses": 100.0, "groups": 10.0}]
    pipeline = plan.fill(planned("rest").pipeline, work=tmp_path)
    assert measures.used(pipeline, rows, tmp_path / "run") == (38, 1 - 3 / 8)


# -- answers ------------------------------------------------------------------------------------------------------


def record(
    one: plan.Planned, reward: float, *, left: float = 0.33, diverse: float | None = 0.5, fell: bool = False
) -> Row:
    metrics = {"last.reward": reward, "best.reward": reward, "left_out": left}
    metrics |= {} if diverse is None else {"last.distinct_grammatical": diverse}
    curve = {"step": [0, 48, 96], "reward": [0.3, 0.9, 0.3 if fell else 0.9]}
    curve |= {"grammar": [0.9] * 3, "kl": [0.0, 1.0, 1.0]}
    keys = ("stage", "world", "arm", "setting", "seed", "hash")
    return Row(**{key: getattr(one, key) for key in keys}, status="done", metrics=metrics, curve=curve)


def words(made: Callable[[plan.Planned], Row]) -> list[str]:
    """The answers to a whole log's results."""
    results = Results()
    for one in plan.tuning(STUDY, "noisy"):
        results.rows[one.key, one.hash] = record(one, 0.3)
    for one in Found(STUDY, "noisy", results).planned:
        results.rows[one.key, one.hash] = made(one)
    said = STUDY.hooks.answers([Found(STUDY, "noisy", results)])
    return [text.split("): ")[1] for text in said]


def wobbling(one: plan.Planned, mean: float) -> float:
    return mean + 0.002 * ((one.seed * 7 + len(one.arm) * 3) % 5)


def ahead(one: plan.Planned) -> Row:
    """A-LoL earns more and is more diverse than all; its KL form collapses; a third is left out."""
    reward, diverse = (wobbling(one, 0.7 if one.arm == ALOL else x) for x in (0.5, 0.3))
    return record(one, reward, diverse=diverse, fell=one.arm == KL)


def behind(one: plan.Planned) -> Row:
    """A-LoL earns less and is less diverse than all, leaves out most, and nothing collapses."""
    reward, diverse = (wobbling(one, 0.2 if one.arm == ALOL else x) for x in (0.5, 0.3))
    return record(one, reward, diverse=diverse, left=0.6)


def alike(one: plan.Planned) -> Row:
    """All arms swing about the same."""
    noise = math.sin(17 * one.seed + 5 * list(STUDY.arms).index(one.arm))
    diverse = None if one.arm == "kto" else 0.5 + 0.1 * noise
    return record(one, 0.5 + 0.1 * noise, diverse=diverse, left=0.28 + 0.02 * (one.seed % 3))


def test_claims_that_hold_are_answered_by_yes():
    better, third, diverse, stable = words(ahead)
    assert better.startswith("yes. +0.2")
    assert third == "yes. 33.0% ± 0.0% have no advantage."
    assert diverse.startswith("yes. A-LoL is more diverse than `wbc`, `sft`")
    assert "`a-lol-seq`" not in diverse
    assert diverse.endswith("`iterative-dpo`.")
    assert stable.startswith("yes. 0 of 26 runs collapsed, tuning included, of the KL form 5 of 21")


def test_claims_that_fail_are_answered_by_no():
    better, third, diverse, stable = words(behind)
    assert better.startswith("no, the opposite. -0.3")
    assert third.startswith("no, more. 60.0%")
    assert diverse.startswith("no. A-LoL is more diverse than none; less than `wbc`, `sft`")
    assert diverse.endswith(
        "earning as much or more: " + diverse.split("less than ")[1].split(". Of")[0] + "."
    )
    assert stable.startswith("not shown. 0 of 26")


def test_what_the_numbers_leave_open_is_not_shown():
    better, third, diverse, _ = words(alike)
    assert better.startswith("not shown")
    assert "four times in five" in better
    assert third.startswith("yes. 29.") or third.startswith("yes. 30.")
    assert diverse.startswith("not shown. A-LoL is more diverse than none; not told apart from")
    assert "`kto` left too few grammatical texts" in diverse


# -- running ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short() -> str:
    """The study with short runs on a small log."""
    text = (FOLDER / "study.yaml").read_text()
    for old, new in (
        ("prompts: 512", "prompts: 64"),
        ("after: 96", "after: 12"),
        ("iterations: 96", "iterations: 12"),
        ("every: 16", "every: 4"),
        ("examples: 256", "examples: 16"),
        ("{iterations: 24, prompts: 128", "{iterations: 3, prompts: 128"),
        ("evaluate.every: 4\n      checkpoints.every: 4", "evaluate.every: 1\n      checkpoints.every: 1"),
        ("iterations: 8, prompts: 64", "iterations: 1, prompts: 64"),
        ("train: {iterations: 24}", "train: {iterations: 3}"),
        ("{iterations: 32, prompts: 32}", "{iterations: 4, prompts: 32}"),
        ("passes: 3", "passes: 1"),
        (
            "last: {evaluate: &final {examples: 16, generation.samples: 4}}",
            "last: {evaluate: &final {examples: 16}}",
        ),
    ):
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_every_arm_runs_from_its_log_to_its_row(short, tmp_path):
    """And responses that are sampled earn what logged ones would."""
    folder = tmp_path / "offline"
    for file in STUDY.code:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text((FOLDER / file).read_text())
    (folder / "study.yaml").write_text(short)
    study, made = Study.read(folder / "study.yaml"), list[Row]()
    first = {arm: plan.settings(study, "noisy", arm)[1] for arm in study.arms}
    todo = [one for one in plan.main(study, "noisy", first) if one.seed == 0]
    (ground,) = plan.prepared(study, todo)
    runner.run_all(study, [ground], tmp_path, 1, made.append)
    assert made[0].metrics["all.responses"] == 256, made[0].why
    assert 0 < made[0].metrics["reference.reward"] < 1
    made.clear()
    runner.run_all(study, todo, tmp_path, 2, made.append, keep=True)
    for row in made:
        found = row.metrics
        assert row.status == "done", row.why
        assert found["steps"] == row.curve["step"][-1] == found["last.step"] == 12
        assert row.curve["step"][0] == 0
        assert row.curve["kl"][0] == pytest.approx(0, abs=1e-4)
        assert found["best.step"] in row.curve["step"][1:]
        assert bool(found["sampled"]) == (row.arm in ONLINE or row.arm.startswith("a-lol"))
        full = row.arm not in ("dpo", "ipo", "rest", "iterative-dpo")  # groups that earned the same fall out
        assert found["learned"] == 12 * 64 if full else 12 * 32 < found["learned"] <= 12 * 64
    grown = next(tmp_path.glob("main+noisy+iterative-dpo+0/rows/grow-1.jsonl"))
    for line in map(json.loads, grown.read_text().splitlines()):
        expected = [logs.score(line["prompt"], text) for text in line["responses"]]
        assert line["scores"] == pytest.approx(expected)


@pytest.mark.slow
def test_a_large_log_in_small(tmp_path):
    """The last of these rows earns nothing."""
    found = large.measured(tmp_path, 48)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["score"] == 0
    assert found["warm"]["steps"] == 50
    assert found["same_bits"]
    assert found["drawn"]["of_no_gain"] == 0
    assert found["drawn"]["chi2"] < 3 * found["drawn"]["freedom"]
