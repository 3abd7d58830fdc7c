"""benchmarks/pg: what its plan promises of budgets and prices, the component that counts tokens, its answers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlalign.testing import ComponentTests
from rlalign.testing.bench import run as trained
from rlalign_study import plan, report, runner
from rlalign_study.analysis import Found
from rlalign_study.file import Study, module_of
from rlalign_study.plan import Planned
from rlalign_study.rows import Results, Row

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks/pg"
STUDY = Study.read(FOLDER / "study.yaml")
README = (FOLDER / "README.md").read_text()
budget = module_of(FOLDER / "budget.py")
TOKENS = 32_000
PRIMARY = "toy-reviews"
Phase = dict[str, Any]


def first(world: str) -> dict[str, plan.Setting]:
    return {arm: plan.settings(STUDY, world, arm)[0] for arm in STUDY.arms_of(world)}


def tuning(arm: str) -> list[Planned]:
    return [one for world in STUDY.worlds for one in plan.tuning(STUDY, world) if one.arm == arm]


def phases(pipeline: Mapping[str, Any]) -> list[Phase]:
    return pipeline.get("phases", [pipeline])  # type: ignore[no-any-return]


def items(phase: Phase) -> dict[str, Any]:
    """The items of `algorithm`, with their options."""
    listed = phase["algorithm"] if isinstance(phase["algorithm"], list) else [phase["algorithm"]]
    return {k: v for item in listed for k, v in ({item: {}} if isinstance(item, str) else item).items()}


def price(pipeline: Mapping[str, Any]) -> float:
    (said,) = [item["kl"]["coef"] for item in pipeline["rewards"] if item.get("as") == "price"]
    return float(said)


# -- the plan -------------------------------------------------------------------------------------------------


def test_there_are_as_many_runs_as_the_protocol_says():
    assert len(STUDY.arms) == 14
    tuned = [one for world in STUDY.worlds for one in plan.tuning(STUDY, world)]
    reported = Counter(one.world for world in STUDY.worlds for one in plan.main(STUDY, world, first(world)))
    varied = plan.ablation(STUDY, PRIMARY, first(PRIMARY))
    assert (len(tuned), reported, len(varied)) == (448, {PRIMARY: 140, "toy-keywords": 70}, 30)
    total = len(tuned) + reported.total() + len(varied)
    assert f"{total} runs" in README


def test_every_arm_has_the_protocols_row_and_every_pair_is_counted():
    for arm in STUDY.arms:
        assert f"| `{arm}` |" in README
    assert len(STUDY.compare.each) == 16
    assert "sixteen pairs" in README


@pytest.mark.parametrize("arm", STUDY.arms)
def test_every_setting_of_every_arm_samples_as_many_tokens(arm):
    """Where a phase samples, a budget ends it, and the budgets of a run add up to the same."""
    for one in tuning(arm):
        spent = 0
        for phase in phases(one.pipeline):
            responses = phase.get("responses", one.pipeline["responses"])
            if responses == "logged":
                assert "budget" not in items(phase)
                continue
            spent += items(phase)["budget"]["tokens"]
            drawn, generation = phase["train"].get("prompts"), one.pipeline["generation"]
            a_prompt = generation.get("samples", 1) if responses == "sampled" else responses["mix"]["sampled"]
            at_once = drawn * a_prompt * generation["max_new_tokens"]
            assert at_once <= 64 * generation["max_new_tokens"] <= 1856
        assert spent == TOKENS


@pytest.mark.parametrize("arm", STUDY.arms)
def test_every_step_of_an_iteration_sees_64_responses_between_them(arm):
    for one in tuning(arm):
        *_, phase = phases(one.pipeline)
        samples = one.pipeline["generation"].get("samples", 1)
        a_prompt = samples
        if isinstance(phase.get("responses"), dict):
            a_prompt = sum(phase["responses"]["mix"].values())
        if "best-vs-worst" in items(phase):
            a_prompt = 2
        assert phase["train"]["prompts"] * a_prompt == 64


def test_the_price_on_the_kl_is_the_same_wherever_it_stands():
    given = STUDY.given["price"]
    for arm in STUDY.arms:
        for one in tuning(arm):
            *_, phase = phases(one.pipeline)
            options = items(phase)
            if "copg" in options:
                assert (options["copg"]["beta"], price(one.pipeline)) == (given, 0), one.key
            elif arm in ("dpo", "rloo-on-logs"):
                assert price(one.pipeline) == 0
            else:
                assert price(one.pipeline) == given
            assert options.get("grpo", {"kl": 0})["kl"] == 0
    betas = {items(phases(one.pipeline)[-1])["dpo"]["beta"] for one in tuning("dpo")}
    assert betas == {given, 10 * given}


def test_only_what_an_arm_learns_with_differs_between_worlds_and_seeds():
    for world in STUDY.worlds:
        for one in plan.main(STUDY, world, first(world)):
            assert one.pipeline["models"] == {"reference": {"of": "start"}}
            assert one.pipeline["evaluate"] == STUDY.pipeline["evaluate"]
            assert one.pipeline["seed"] == one.seed


def test_stored_rows_are_of_todays_plan_and_sampled_as_many_tokens():
    results = Results.read(FOLDER / STUDY.results)
    assert results.notes == []
    tuned = {(one.key, one.hash) for world in STUDY.worlds for one in plan.tuning(STUDY, world)}
    rows = list(results.rows.values())
    assert rows
    for row in rows:
        assert row.stage != "tuning" or (row.key, row.hash) in tuned, row.key
        if row.status == "done":
            assert TOKENS <= row.metrics["sampled_tokens"] < TOKENS + 2 * 1856


# -- the budget -----------------------------------------------------------------------------------------------


class TestBudget(ComponentTests):
    component = budget.Budget
    options = {"tokens": 100}


def spent(folder: Path, **said: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A short run: the lines of its iterations, and the tokens that its phases sampled."""
    pipeline = {
        "task": {"toy-numbers": {}},
        "policy": {
            "table": {"actions": ["1", "2", "3", "end"], "end": "end", "steps": 5, "state": "previous"}
        },
        "rewards": ["increasing-numbers"],
        "algorithm": ["rloo", {"budget": {"tokens": 100}}],
        "generation": {"samples": 2, "max_new_tokens": 5},
        "train": {"iterations": 50, "prompts": 4},
        **said,
    }
    finished, _ = trained(folder, pipeline, {"budget": budget.Budget})
    lines = map(json.loads, (finished.path / "metrics.jsonl").read_text().splitlines())
    files = {p.stem.removeprefix("spent-"): json.loads(p.read_text()) for p in finished.path.glob("spent-*")}
    return [line for line in lines if "responses" in line], files


def test_a_phase_ends_with_the_iteration_that_spends_its_budget(tmp_path):
    lines, found = spent(tmp_path)
    tokens = [line["tokens"] for line in lines]
    assert sum(tokens[:-1]) < 100 <= sum(tokens)
    assert found == {"rloo": sum(tokens)}


def test_a_budget_counts_in_each_phase_anew_and_what_is_logged_costs_nothing(tmp_path):
    learn = {"task": {"from": "log"}, "responses": {"mix": {"sampled": 1, "logged": 1}}}
    said = [
        {"name": "log", "algorithm": ["collect", {"budget": {"tokens": 100}}]},
        {"name": "learn", **learn},
    ]
    lines, found = spent(tmp_path, phases=said)
    learned = sum(line["tokens"] for line in lines if line["phase"] == "learn")
    assert 100 <= found["log"] < 140
    assert 100 <= found["learn"] < 120
    assert learned > found["learn"] + 40


# -- answers --------------------------------------------------------------------------------------------------


def record(one: Planned, reward: float, kl: float = 1.0) -> Row:
    metrics = {"final.reward": reward, "final.kl": kl, "final.grammar": 0.9}
    metrics |= {"final.distinct_grammatical": 0.5, "sampled_tokens": 32_100.0, "seconds": 15.0}
    curve = {
        "step": [0, 50],
        "reward": [0.4, 0.8],
        "grammar": [0.9] * 2,
        "kl": [0.0, kl],
        "tokens": [0, 32_100],
    }
    keys = ("stage", "world", "arm", "setting", "seed", "hash")
    return Row(**{key: getattr(one, key) for key in keys}, status="done", metrics=metrics, curve=curve)


def whole(reward: Callable[[Planned], float]) -> Found:
    """A whole world's results."""
    results = Results()
    for one in plan.tuning(STUDY, PRIMARY):
        results.rows[one.key, one.hash] = record(one, 0.5)
    tuned = Found(STUDY, PRIMARY, results)
    for one in [*tuned.planned, *tuned.ablations]:
        wobble = 0.002 * ((7 * one.seed + len(one.arm)) % 5)
        results.rows[one.key, one.hash] = record(one, reward(one) + wobble)
    return Found(STUDY, PRIMARY, results)


def words(reward: Callable[[Planned], float]) -> list[str]:
    """The answers to it."""
    return [text.split("): ", 1)[1] for text in STUDY.hooks.answers([whole(reward)])]


def by(means: Mapping[str, float], lambdas: Mapping[str, float]) -> Callable[[Planned], float]:
    return lambda one: lambdas.get(one.setting.removeprefix("λ="), means.get(one.arm, 0.6))


def test_the_objective_is_the_reward_less_the_price_of_the_kl():
    (one, *_) = plan.main(STUDY, PRIMARY, first(PRIMARY))
    found = STUDY.hooks.derive(record(one, 0.8, kl=3.0), STUDY.given_of(PRIMARY))
    assert found == {"final.objective": pytest.approx(0.65), "final.gain": pytest.approx(0.25)}


def test_claims_that_hold_are_answered_by_yes():
    means = {"rloo-k4": 0.8, "rloo-k2": 0.8, "raft-k4": 0.7, "raft-k2": 0.7, "ppo": 0.6}
    means |= {"copg": 0.8, "copg-logs": 0.79, "rloo-on-logs": 0.2}
    said = words(by(means, {"0.95": 0.6, "0.5": 0.55, "0": 0.5}))
    assert [text.partition(".")[0] for text in said] == ["yes"] * 6
    assert said[0].startswith("yes. `rloo-k4` less `raft-k4` +0.100 ± 0.00")
    assert "over the start +0.3" in said[2]
    assert "0.554 at 1, 0.554 at 0.95, 0.504 at 0.5, 0.454 at 0" in said[5]


def test_claims_that_fail_are_answered_by_no():
    means = {"rloo-k4": 0.8, "rloo-k2": 0.7, "raft-k4": 0.7, "raft-k2": 0.8, "ppo": 0.9}
    means |= {"copg": 0.7, "copg-logs": 0.3, "rloo-on-logs": 0.5}
    said = words(by(means, {"0.95": 0.7, "0.5": 0.7, "0": 0.7}))
    opposite = "no, the opposite"
    assert [text.partition(".")[0] for text in said] == [opposite] * 3 + ["no"] * 2 + [opposite]


def test_what_the_numbers_leave_open_is_not_shown():
    noise = lambda one: 0.6 + 0.1 * math.sin(17 * one.seed + 5 * len(one.key))  # noqa: E731
    assert {text.partition(".")[0] for text in words(noise)} == {"not shown"}


def test_a_log_is_not_learned_from_where_it_only_hurts_less():
    """Above the naive use of the log, and not above the start."""
    said = words(by({"copg-logs": 0.448, "rloo-on-logs": 0.2}, {}))
    assert said[2].startswith("not shown")


def test_a_fall_that_is_no_fall_all_the_way_is_not_shown():
    assert words(by({}, {"0.95": 0.7, "0.5": 0.55, "0": 0.5}))[5].startswith("not shown")


def test_the_report_has_a_row_for_every_arm_and_every_lambda():
    found = whole(by({}, {}))
    lines = report.table(STUDY, [found])
    for arm in STUDY.arms:
        cells = next(line for line in lines if line.startswith(f"| `{arm}` | 0.55"))  # the objective
        assert "| 0.60" in cells  # the reward
    assert sum("| λ = " in line for line in lines) == 4
    assert sum(line.startswith("- **") for line in lines) == 6
    written = "\n".join(line for name in STUDY.blocks for line in report.block(STUDY, [found], name))
    assert all(written.count(f"| {PRIMARY} | `{arm}` |") == 1 for arm in STUDY.arms)


# -- running --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "arms"), [(PRIMARY, set(STUDY.arms)), ("toy-keywords", {"raft-k4", "copg-mix", "dpo"})]
)
def test_every_arm_runs_from_plan_to_row(world, arms, tmp_path):
    made: list[Row] = []
    todo = [one for one in plan.main(STUDY, world, first(world)) if one.seed == 0 and one.arm in arms]
    for one in todo:
        one.pipeline["evaluate"] |= {"every": 2, "examples": 16}
        one.final["final"]["examples"] = 16
        for phase in phases(one.pipeline):
            if "budget" in items(phase):
                items(phase)["budget"]["tokens"] //= 40
    runner.run_all(STUDY, todo, tmp_path, 2, made.append)
    assert {row.arm for row in made} == arms
    for row in made:
        assert row.status == "done", row.why
        assert TOKENS / 40 <= row.metrics["sampled_tokens"] < TOKENS / 40 + 2 * 1856
        assert row.metrics["steps"] > 0
        if row.arm.startswith("raft"):  # what it is best of is sampled
            assert row.metrics["sampled_tokens"] == row.metrics["tokens"]
            assert row.metrics["responses"] == 64 * row.curve["iteration"][-1]
        assert row.curve["kl"][0] == pytest.approx(0, abs=1e-4)
        assert {"final.reward", "final.kl", "final.distinct_3"} <= row.metrics.keys()
