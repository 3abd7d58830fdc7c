"""benchmarks/offline: its logs, its plan against what the protocol promises, its reading of runs, its answers."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the study is no installed package

from benchmarks.offline import analysis, large, logs, measures, plan, report, results, runner, study
from benchmarks.offline.limits import AtMost, Ending
from benchmarks.offline.measures import End, Point, Prepared, Record

from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.testing import ComponentTests
from rlalign_plugin_toy_tasks.reviews import REVIEWS

NOISY, CLEAN = logs.NOISY, logs.CLEAN


# -- logs ---------------------------------------------------------------------------------------------------


def test_a_score_is_half_of_one_and_the_sentiment_and_nothing_outside_the_language():
    assert logs.score("the plot was", "great .") == pytest.approx((1 + 1 / 1.5) / 2)
    assert logs.score("the plot was", "dull .") == pytest.approx((1 - 1 / 1.5) / 2)
    assert logs.score("the plot was", "great great .") == 0


@pytest.fixture(scope="module")
def noisy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "PROMPTS", 64)
        return logs.rows(NOISY, 3)


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


def test_a_log_is_the_same_whenever_it_is_written(noisy, monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "PROMPTS", 64)
    logs.written(NOISY, 3, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()] == noisy
    splits = {split: (tmp_path / f"{split}.jsonl").read_text().splitlines() for split in ("val", "test")}
    assert {len(lines) for lines in splits.values()} == {logs.HELD_OUT}
    assert splits["val"] != splits["test"]
    assert all("responses" not in json.loads(line) for lines in splits.values() for line in lines)


# -- the plan -------------------------------------------------------------------------------------------------


def chosen() -> dict[str, plan.Trial]:
    return {arm.name: plan.trials(arm)[0] for arm in plan.ARMS.values()}


def everything() -> list[plan.Planned]:
    return [one for log in logs.LOGS.values() for one in (*plan.tuning(log), *plan.main(log, chosen()))]


def test_each_run_has_a_name_and_a_plan_of_its_own():
    runs = everything()
    assert len({one.key for one in runs}) == len(runs) == 670
    assert len({one.digest for one in runs}) == len(runs)


def test_tuning_never_sees_a_reported_seed_or_the_test_split():
    for one in everything():
        assert (one.seed in plan.TUNING_SEEDS) == (one.stage == "tuning")
        assert one.pipeline["evaluate"]["split"] == "val"
        assert one.split == ("val" if one.stage == "tuning" else "test")


def test_all_arms_try_eight_settings_and_have_five_or_ten_seeds():
    for log in logs.LOGS.values():
        tried = Counter((one.arm.name, one.trial) for one in plan.tuning(log))
        assert set(tried.values()) == {len(plan.TUNING_SEEDS)}
        assert Counter(arm for arm, _ in tried) == dict.fromkeys(plan.ARMS, 8)
        seeds = Counter(one.arm.name for one in plan.main(log, chosen()))
        assert {arm for arm, count in seeds.items() if count == 10} == set(plan.MORE)
        assert {count for arm, count in seeds.items() if arm not in plan.MORE} == {5}


def test_every_arm_has_the_protocols_row():
    readme = (Path(plan.__file__).parent / "README.md").read_text()
    for arm in plan.ARMS.values():
        assert f"| `{arm.name}` |" in readme
    assert "1e-4, 4e-4" in readme
    assert f"{plan.STEPS} optimiser steps" in readme


def phases(pipeline: plan.Pipeline) -> list[plan.Pipeline]:
    found = pipeline.get("phases", [pipeline])
    return [p for p in found if "fit-value" not in p["algorithm"] and p["algorithm"] != "collect"]


def per_step(phase: plan.Pipeline) -> float:
    """Responses that an optimiser step learns from; behind a threshold the most there can be."""
    train, listed = phase["train"], phase["algorithm"]
    items = [item for item in (listed if isinstance(listed, list) else [listed]) if isinstance(item, dict)]
    options = {name: value for item in items for name, value in item.items()}
    each = {"ending": 1, "best-of": 1}
    if "at-most" in options:
        return float(options["at-most"]["n"])
    a_prompt = (
        2 if "best-vs-worst" in listed else next((n for k, n in each.items() if k in options), logs.EACH)
    )
    return train["prompts"] * a_prompt / train.get("minibatches", 1)


def steps(pipeline: plan.Pipeline) -> int:
    total = 0
    for phase in phases(pipeline):
        train, listed = phase["train"], phase["algorithm"]
        ends = [x["ending"]["after"] for x in listed if isinstance(x, dict) and "ending" in x]
        each = train.get("epochs", 1) * train.get("minibatches", 1)
        total += (ends[0] if ends and isinstance(listed, list) else train["iterations"]) * each
    return total * pipeline.get("repeat", 1)


@pytest.mark.parametrize("arm", plan.ARMS.values(), ids=plan.ARMS)
@pytest.mark.parametrize("log", logs.LOGS.values(), ids=logs.LOGS)
def test_all_settings_of_all_arms_have_the_same_budget(arm, log):
    for trial in plan.trials(arm):
        pipeline = plan.Planned("main", log, arm, trial, 0).pipeline
        assert steps(pipeline) == plan.STEPS
        assert {per_step(phase) for phase in phases(pipeline)} == {plan.BATCH}


def test_only_online_arms_are_rewarded_while_they_learn():
    for arm in plan.ARMS.values():
        pipeline = arm.made(plan.trials(arm)[0], NOISY)
        rewarded = [p for p in pipeline.get("phases", [pipeline]) if p.get("rewards")]
        rewarded = [p for p in rewarded if p.get("name") != "value"]
        assert bool(rewarded) == arm.online


def registry() -> Registry:
    return Registry({"ending": Ending, "at-most": AtMost})


def test_the_pipelines_are_accepted(tmp_path):
    some = [one for one in everything() if one.log is NOISY and one.trial.lr == plan.LRS[0]]
    for one in {(one.arm.name, str(one.trial)): one for one in some}.values():
        load_pipeline(tmp_path / "pipeline.yaml", registry=registry(), text=json.dumps(one.pipeline))
    load_pipeline(tmp_path / "pipeline.yaml", registry=registry(), text=json.dumps(plan.clone(NOISY, 0)))


class TestAtMost(ComponentTests):
    component = AtMost
    options = {"n": 3}


class TestEnding(ComponentTests):
    component = Ending
    options = {"after": 2}


# -- what is read off a run -----------------------------------------------------------------------------------


def at(step: int, reward: float, kl: float = 1.0, grammar: float = 0.9) -> Point:
    return Point(step, reward, 2 * reward - 1, grammar, kl, 10.0)


def ended(reward: float, diverse: float | None = 0.5) -> End:
    return End(96, 1024, reward, 2 * reward - 1, 0.9, 2.0, 10.0, 0.01, 0.1, 0.4, 0.9, diverse)


def record(
    key: str,
    digest: str,
    reward: float,
    *,
    left: float = 0.33,
    diverse: float | None = 0.5,
    fell: bool = False,
) -> Record:
    curve = (at(0, 0.3, 0.0), at(48, 0.9), at(96, 0.3 if fell else 0.9))
    last = ended(reward, diverse)
    return Record(key, digest, 8.0, 96, 6144, 0, 0, left, {"torch": "2"}, curve, last, last, None)


def test_records_come_back_from_their_line():
    one = record("main/noisy/a-lol/3", "abc", 0.75)
    assert Record.of(one.line()) == one
    broken = replace(one, last=None, best=None, broke="the loss is not finite")
    assert Record.of(broken.line()) == broken
    ground = Prepared("logs/noisy/0", "abc", 3.0, {"all": [2048, 0.5, 0.9]}, ended(0.3))
    assert Prepared.of(ground.line()) == ground


def test_distinct_n_by_hand():
    texts = ["a b c", "a b d", "e"]
    assert measures.distinct(texts, 1) == 5 / 7
    assert measures.distinct(texts, 2) == 3 / 4  # never across texts
    assert measures.distinct(["a"], 2) == 0


def test_a_final_measurement_from_exported_samples(monkeypatch):
    monkeypatch.setattr(measures, "COMPARED", 2)

    def row(texts: list[str], grammar: list[float], gated: list[float]) -> dict[str, object]:
        kl = [-1.0, -2.0]
        rewards = {"toy-grammar": grammar, "gated": gated, "toy-sentiment": [0.5, -0.5], "kl": kl}
        return {"responses": texts, "meta": {"rlalign": {"rewards": rewards}}}

    rows = [
        row(["a b c d", "e e e e"], [1.0, 0.0], [0.5, 0.0]),
        row(["a b c e", "a b c d"], [1.0, 1.0], [-0.5, 1]),
    ]
    end = measures.end(rows, 96)
    assert (end.texts, end.reward, end.grammar, end.kl) == (4, (0.75 + 0.25) / 2, 0.75, 1.5)
    assert end.distinct == 3 / 4
    assert end.distinct_grammatical == 3 / 4  # abc, bcd, abc, bce
    assert measures.end(rows[:1], 96).distinct_grammatical is None


def test_steps_of_a_curve_begin_at_its_start_and_no_step_stands_twice():
    def row(step: int, gated: float) -> dict[str, float]:
        return {"step": step, "eval/responses": 8.0, "eval/toy-grammar": 0.5, "eval/gated": gated} | {
            "eval/toy-sentiment": 0.1,
            "eval/kl/per_response": 2.0,
            "eval/length": 9.0,
        }

    made = measures.curve(
        [{"step": 40, "responses": 64.0}, row(40, 0.1), row(56, 0.3), row(56, 0.9), row(72, 0.5)]
    )
    assert [(p.step, p.reward) for p in made] == [(0, 0.3), (16, 0.4), (32, 0.5)]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([at(0, 0.3), at(5, 0.5), at(10, 0.6)], False),
        ([at(0, 0.3), at(5, 0.5), at(10, 0.39)], True),  # lost its gain
        ([at(0, 0.3), at(5, 0.38), at(10, 0.22)], False),  # never had a gain to lose
        ([at(0, 0.3), at(5, 0.19)], True),  # worse than it began
        ([at(0, 0.3), at(5, 0.5, grammar=0.44)], True),  # lost its language
        ([at(0, 0.3), at(5, 0.5, kl=20.5)], True),  # lost contact
    ],
)
def test_what_counts_as_collapsed(curve, expected):
    one = replace(record("main/noisy/dpo/0", "abc", 0.5), curve=tuple(curve))
    assert measures.collapsed(one) is expected
    assert measures.collapsed(replace(one, curve=tuple(curve[:1]), broke="not finite"))


def pipeline_of(arm: str) -> plan.Pipeline:
    return plan.Planned("main", NOISY, plan.ARMS[arm], plan.trials(plan.ARMS[arm])[0], 0).pipeline


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
    learned, left = runner.used(pipeline_of(arm), rows, tmp_path, tmp_path)
    assert (learned, left) == (expected[0], pytest.approx(expected[1]))


def test_behind_a_threshold_the_share_of_log_and_samples_counts(tmp_path):
    log, grown = tmp_path / "logs/noisy-0/train.jsonl", tmp_path / "run/rows/grow-1.jsonl"
    for file, scores in ((log, [0.1, 0.2, 0.3, 0.9]), (grown, [0.7, 0.8, 0.1, 0.0])):
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"scores": scores}) + "\n")
    rows = [{"phase": "improve-1", "repeat": 0, "responses": 100.0, "groups": 10.0}]
    assert runner.used(pipeline_of("rest"), rows, tmp_path / "run", tmp_path) == (38, 1 - 3 / 8)


# -- choosing ---------------------------------------------------------------------------------------------------


def tuned(made: Callable[[plan.Planned], Record]) -> dict[str, Record]:
    return {one.key: made(one) for one in plan.tuning(NOISY)}


def by_lr(one: plan.Planned) -> Record:
    return record(one.key, one.digest, 0.3 + 0.1 * plan.LRS.index(one.trial.lr))


def test_the_best_setting_is_chosen():
    picked = plan.choose(NOISY, tuned(by_lr))
    assert {arm: trial.lr for arm, trial in picked.items()} == dict.fromkeys(plan.ARMS, plan.LRS[-1])
    assert all(
        trial.value == plan.ARMS[arm].values[0] for arm, trial in picked.items()
    )  # the first of two alike


def test_a_setting_that_collapsed_once_is_not():
    def made(one: plan.Planned) -> Record:
        falls = one.trial.lr == plan.LRS[-1] and one.seed == plan.TUNING_SEEDS[0]
        return replace(by_lr(one), curve=(at(0, 0.5), at(16, 0.1))) if falls else by_lr(one)

    assert {trial.lr for trial in plan.choose(NOISY, tuned(made)).values()} == {plan.LRS[-2]}


def test_where_all_collapsed_the_best_is_chosen_all_the_same():
    def made(one: plan.Planned) -> Record:
        return replace(by_lr(one), curve=(at(0, 0.5), at(16, 0.1)))

    assert {trial.lr for trial in plan.choose(NOISY, tuned(made)).values()} == {plan.LRS[-1]}


def test_an_arm_whose_tuning_is_not_done_waits():
    records = tuned(by_lr)
    del records[next(key for key in records if "/dpo/" in key)]
    assert set(plan.choose(NOISY, records)) == set(plan.ARMS) - {"dpo"}


# -- results, answers and report ----------------------------------------------------------------------------------


def filled(folder: Path, log: logs.Log, made: Callable[[plan.Planned], Record]) -> None:
    """Results of a whole log."""
    records = {one.key: by_lr(one) for one in plan.tuning(log)}
    (folder / f"tuning-{log.name}.jsonl").write_text("".join(f"{r.line()}\n" for r in records.values()))
    main = [made(one) for one in plan.main(log, plan.choose(log, records))]
    (folder / f"main-{log.name}.jsonl").write_text("".join(f"{r.line()}\n" for r in main))
    grounds = [plan.Ground(log, seed) for seed in range(plan.MORE_SEEDS)]
    kinds = {"good": [1024, 0.5, 0.95], "all": [2048, 0.3, 0.7]}
    laid = [Prepared(ground.key, ground.digest, 3.0, kinds, ended(0.3)) for ground in grounds]
    (folder / f"logs-{log.name}.jsonl").write_text("".join(f"{one.line()}\n" for one in laid))


def wobbling(one: plan.Planned, mean: float) -> float:
    return mean + 0.002 * ((one.seed * 7 + len(one.arm.name) * 3) % 5)


def ahead(one: plan.Planned) -> Record:
    """A-LoL earns more and is more diverse than all; its KL form collapses; a third is left out."""
    best = one.arm.name == plan.ALOL
    reward, diverse = (wobbling(one, 0.7 if best else x) for x in (0.5, 0.3))
    return record(one.key, one.digest, reward, diverse=diverse, fell=one.arm.name == plan.KL)


def behind(one: plan.Planned) -> Record:
    """A-LoL earns less and is less diverse than all, leaves out most, and nothing collapses."""
    last = one.arm.name == plan.ALOL
    reward, diverse = (wobbling(one, 0.2 if last else x) for x in (0.5, 0.3))
    return record(one.key, one.digest, reward, diverse=diverse, left=0.6)


def alike(one: plan.Planned) -> Record:
    """All arms swing about the same."""
    noise = math.sin(17 * one.seed + 5 * list(plan.ARMS).index(one.arm.name))
    diverse = None if one.arm.name == "kto" else 0.5 + 0.1 * noise
    return record(one.key, one.digest, 0.5 + 0.1 * noise, diverse=diverse, left=0.28 + 0.02 * (one.seed % 3))


def words(folder: Path, log: logs.Log = NOISY) -> list[str]:
    return [said.split("): ")[1] for said in analysis.answers([analysis.studied(log, folder)])]


def test_claims_that_hold_are_answered_by_yes(tmp_path):
    filled(tmp_path, NOISY, ahead)
    better, third, diverse, stable = words(tmp_path)
    assert better.startswith("yes. +0.2")
    assert third == "yes. 33.0% ± 0.0% have no advantage."
    assert diverse.startswith("yes. A-LoL is more diverse than `wbc`, `sft`")
    assert "`a-lol-seq`" not in diverse
    assert diverse.endswith("`iterative-dpo`.")
    assert stable.startswith("yes. 0 of 26 runs collapsed, tuning included, of the KL form 5 of 21")


def test_claims_that_fail_are_answered_by_no(tmp_path):
    filled(tmp_path, NOISY, behind)
    better, third, diverse, stable = words(tmp_path)
    assert better.startswith("no, the opposite. -0.3")
    assert third.startswith("no, more. 60.0%")
    assert diverse.startswith("no. A-LoL is more diverse than none; less than `wbc`, `sft`")
    assert diverse.endswith(
        "earning as much or more: " + diverse.split("less than ")[1].split(". Of")[0] + "."
    )
    assert stable.startswith("not shown. 0 of 26")


def test_what_the_numbers_leave_open_is_not_shown(tmp_path):
    filled(tmp_path, NOISY, alike)
    better, third, diverse, _ = words(tmp_path)
    assert better.startswith("not shown")
    assert "four times in five" in better
    assert third.startswith("yes. 29.") or third.startswith("yes. 30.")
    assert diverse.startswith("not shown. A-LoL is more diverse than none; not told apart from")
    assert "`kto` left too few grammatical texts" in diverse


def test_the_report_is_written_from_what_is_there(tmp_path, capsys):
    filled(tmp_path, NOISY, ahead)
    report.write(tmp_path, list(logs.LOGS))
    assert "clean: 0 of 15 arms are tuned, 0 of 95 runs" in capsys.readouterr().out
    table = (tmp_path / "table.md").read_text()
    assert "| `a-lol` − `wbc` | +0.2" in table
    assert "**A-LoL earns more than reward-weighted cloning** (`noisy`, the primary log): yes" in table
    assert "| the reference's | 1024 | 0.300 |" in table
    assert "nan" not in table
    assert "inf" not in table
    assert "| noisy | `a-lol` | 0.7" in (tmp_path / "readme-a-lol.md").read_text()
    for name in ("curves-noisy", "tuning-noisy", "price"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("plugin", report.PLUGINS)
def test_the_readme_of_a_plugin_shows_what_was_found(plugin):
    root = Path(plan.__file__).parents[2]
    found = (results.FOLDER / f"readme-{plugin}.md").read_text()
    assert found in (root / "plugins/algorithms" / plugin / "README.md").read_text()
    studies = [analysis.studied(log, results.FOLDER) for log in logs.LOGS.values()]
    assert found == "\n".join(report.short(studies, plugin)) + "\n"


def test_half_a_study_is_reported_too(tmp_path):
    filled(tmp_path, NOISY, ahead)
    main = tmp_path / "main-noisy.jsonl"
    main.write_text("".join(f"{line}\n" for line in main.read_text().splitlines() if "/sft/" in line))
    report.write(tmp_path, ["noisy"])
    assert "| `sft` |" in (tmp_path / "table.md").read_text()


# -- running ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The study with short runs on a small log."""
    monkeypatch.setattr(logs, "PROMPTS", 64)
    monkeypatch.setattr(plan, "STEPS", 12)
    monkeypatch.setattr(plan, "EVERY", 4)
    monkeypatch.setattr(plan, "FINAL", {"examples": 16, "samples": 2})
    monkeypatch.setattr(plan, "EVALUATE", {**plan.EVALUATE, "examples": 16})
    monkeypatch.setattr(plan, "CLONE_PASSES", 1)
    monkeypatch.setattr(plan, "VALUED", {**plan.VALUED, "train": {**plan.VALUED["train"], "prompts": 64}})


@pytest.mark.slow
def test_every_arm_runs_from_its_log_to_its_record(small, tmp_path):
    ground = plan.Ground(NOISY, 7)
    laid: list[Prepared] = []
    assert not runner.ready(ground, tmp_path)
    assert runner.prepare_all([ground], tmp_path, 1, laid.append) == []
    assert runner.ready(ground, tmp_path)
    assert laid[0].kinds["all"][0] == 256
    made: dict[str, Record] = {}
    todo = [plan.Planned("main", NOISY, arm, plan.trials(arm)[0], 7) for arm in plan.ARMS.values()]
    todo = [replace(one, trial=replace(one.trial, lr=1e-4)) for one in todo]
    assert runner.run_all(todo, tmp_path, 2, lambda r: made.update({r.run: r})) == []
    for one in todo:
        found = made[one.key]
        assert found.broke is None
        assert found.steps == 12
        assert found.curve[0].step == 0
        assert found.curve[0].kl == pytest.approx(0, abs=1e-4)
        assert found.curve[-1].step == found.end.step == 12
        assert found.end.kl != 0
        assert found.best is not None
        assert found.best.step in {at.step for at in found.curve[1:]}
        assert bool(found.sampled) == (one.arm.online or one.arm.name in analysis.FAMILY)
        full = one.arm.name not in (
            "dpo",
            "ipo",
            "rest",
            "iterative-dpo",
        )  # groups that earned the same fall out
        assert found.responses == 12 * 64 if full else 12 * 32 < found.responses <= 12 * 64
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "references"}


@pytest.mark.slow
def test_sampled_responses_earn_what_logged_ones_would(small, tmp_path):
    ground = plan.Ground(NOISY, 7)
    assert runner.prepare_all([ground], tmp_path, 1, lambda found: None) == []
    arm = plan.ARMS["iterative-dpo"]
    one = plan.Planned("main", NOISY, arm, plan.trials(arm)[0], 7)
    assert runner.run_all([one], tmp_path, 1, lambda found: None, keep=True) == []
    rows = [
        json.loads(line) for line in next(tmp_path.glob("main+*/rows/grow-1.jsonl")).read_text().splitlines()
    ]
    for row in rows:
        assert row["scores"] == pytest.approx([logs.score(row["prompt"], text) for text in row["responses"]])


@pytest.mark.slow
def test_a_large_log_in_small(tmp_path):
    """The last of these rows earns nothing."""
    found = large.measured(tmp_path, 48)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["score"] == 0
    assert found["warm"]["steps"] == 50
    assert found["same_bits"]
    assert found["drawn"]["of_no_gain"] == 0
    assert found["drawn"]["chi2"] < 3 * found["drawn"]["freedom"]


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    command = ["study.py", "run", "--log", "clean", "--arms", "sft", "--stage", "tuning", "--jobs", "1"]
    monkeypatch.setattr(
        sys, "argv", [*command, "--only", "0.0001,tokens/1000", "--runs", str(tmp_path / "runs")]
    )
    assert study.main() == 0
    assert "0 of 1 runs are there" in capsys.readouterr().out
    before = (tmp_path / "results/tuning-clean.jsonl").read_text()
    assert study.main() == 0
    assert "1 of 1 runs are there" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--only", "lr=0.0001,", "--runs", str(tmp_path / "runs")])
    assert study.main() == 0
    assert "1 of 4 runs are there" in capsys.readouterr().out
    after = (tmp_path / "results/tuning-clean.jsonl").read_text().splitlines()
    assert before.strip() in after
    assert len(after) == 4


@pytest.mark.slow
def test_a_run_that_cannot_be_made_is_named(small, tmp_path, capfd):
    arm = replace(
        plan.ARMS["sft"], made=lambda trial, log: {"algorithm": {"sft": {"meen": 1}}, "train": {"lr": 1}}
    )
    one = plan.Planned("main", CLEAN, arm, plan.Trial(1e-4, 0), 7)
    assert runner.run_all([one], tmp_path, 1, lambda r: None) == [one.key]
    assert "meen" in capfd.readouterr().err
