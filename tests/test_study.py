"""benchmarks/nlpo: its statistics against tables, its plan against what the protocol promises, its reading of runs."""

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

from benchmarks.common import stats
from benchmarks.nlpo import analysis, measures, plan, report, results, runner
from benchmarks.nlpo.measures import Point, Record

from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry

REVIEWS = plan.WORLDS["toy-reviews"]


# -- statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_of_t(df, expected):
    assert stats.t_quantile(0.975, df) == pytest.approx(expected, abs=1e-4)
    assert stats.t_quantile(0.025, df) == pytest.approx(-expected, abs=1e-4)


def test_t_is_symmetric_and_nearly_normal_in_the_end():
    assert stats.t_cdf(0.0, 7) == 0.5
    assert stats.t_cdf(1.3, 4) + stats.t_cdf(-1.3, 4) == pytest.approx(1)
    assert stats.t_cdf(1.96, 5000) == pytest.approx(0.975, abs=1e-4)


def test_the_interval_and_the_paired_test_of_students_sleep_data():
    """Ten patients, hours of sleep gained by two drugs (Student 1908): t = −4.0621, p = 0.002833."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    assert stats.paired_t(differences) == pytest.approx(0.002833, abs=1e-6)
    assert stats.half_interval(differences) == pytest.approx((2.4598858 - 0.7001142) / 2, abs=1e-6)
    assert stats.sign_flips(differences) == 4 / 1024  # one difference is zero, nine have one sign


def test_sign_flips_by_hand():
    assert stats.sign_flips([1, 2, 3, 4, 5]) == 2 / 32
    assert stats.sign_flips([1, -1]) == 1
    assert stats.sign_flips([3, 1, -1]) == 6 / 8  # ±(3 − 1 − 1) falls short of 3, all others do not
    with pytest.raises(ValueError, match="17 pairs"):
        stats.sign_flips([1.0] * 17)


def test_fisher_by_hand():
    assert stats.fisher(3, 4, 1, 4) == pytest.approx(34 / 70)  # the lady who tasted tea
    assert stats.fisher(1, 10, 11, 14) == pytest.approx(0.0027594561852)
    assert stats.fisher(0, 10, 0, 12) == 1


def test_holm_by_hand():
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert stats.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert stats.holm({}) == {}


def test_equal_spread_sees_a_spread_and_only_that():
    xs = [0.1, -0.2, 0.15, -0.05, 0.0, 0.12, -0.1, 0.07]
    ys = [0.3, 0.1, -0.2, 0.25, -0.15, -0.3, 0.05, 0.2]
    wide = [20 * y for y in ys]
    assert stats.equal_spread(xs, wide) < 0.001
    assert stats.equal_spread(xs, wide) == pytest.approx(stats.equal_spread(wide, [x + 5 for x in xs]))
    assert stats.equal_spread(xs, [-x for x in xs]) == 1.0
    assert stats.equal_spread(xs, xs) == 1.0


def test_what_would_be_found():
    """Ten differences with a standard deviation of 1: (2.2622 + 0.8834) / √10."""
    unit = [math.sqrt(0.9) * s for s in (1, -1) * 5]
    assert stats.detectable(unit) == pytest.approx((2.2622 + 0.8834) / math.sqrt(10), abs=1e-4)


# -- the plan ---------------------------------------------------------------------------------------------


def chosen(world: plan.World) -> dict[str, plan.Trial]:
    return dict.fromkeys(plan.arms(world), plan.trials(world)[0])


def everything() -> list[plan.Planned]:
    worlds = plan.WORLDS.values()
    return [
        one
        for world in worlds
        for part in (plan.tuning(world), plan.main(world, chosen(world)), plan.ablation(world, chosen(world)))
        for one in part
    ]


def test_each_run_has_a_name_and_a_pipeline_of_its_own():
    runs = everything()
    assert len({one.key for one in runs}) == len(runs)
    others = [one for one in runs if one.stage == "tuning" or one.setting]
    assert len({one.digest for one in others}) == len(others)


def test_tuning_never_sees_a_reported_seed_or_the_test_split():
    for one in everything():
        assert (one.seed in plan.TUNING_SEEDS) == (one.stage == "tuning")
        assert one.pipeline["evaluate"]["split"] == "val"
        assert one.split == ("val" if one.stage == "tuning" else "test")


@pytest.mark.parametrize("world", plan.WORLDS.values(), ids=plan.WORLDS)
def test_all_arms_have_the_same_trials_and_the_same_budget(world):
    tried = Counter((one.arm.name, one.trial) for one in plan.tuning(world))
    assert set(tried.values()) == {len(plan.TUNING_SEEDS)}
    assert len(tried) == 8 * len(plan.arms(world))
    budgets = set()
    for one in plan.main(world, chosen(world)):
        pipeline = one.pipeline
        train = pipeline["train"]
        steps = train["iterations"] * train["epochs"] * train["minibatches"]
        longest = pipeline["generation"].get("max_new_tokens")
        budgets.add(
            (train["iterations"], train["prompts"], pipeline["generation"].get("samples"), longest, steps)
        )
    assert len(budgets) == 1


@pytest.mark.parametrize("world", plan.WORLDS.values(), ids=plan.WORLDS)
def test_arms_differ_in_what_they_are_named_for_and_in_nothing_else(world):
    pipelines = {one.arm.name: one.pipeline for one in plan.main(world, chosen(world)) if one.seed == 0}
    base = pipelines[plan.PPO]
    differs = {
        arm: {key for key in base if pipeline[key] != base[key]} for arm, pipeline in pipelines.items()
    }
    allowed = {
        plan.PPO: set(),
        plan.NLPO: {"algorithm"},
        plan.RELEASED: {"algorithm", "generation"},
        "a2c": {"algorithm", "train"},
        plan.CONTROL: {"generation"},
    }
    assert differs == {arm: allowed[arm] for arm in pipelines}


def test_ablations_change_one_thing():
    mains = {(one.arm.name, one.seed): one.pipeline for one in plan.main(REVIEWS, chosen(REVIEWS))}
    made = Counter()
    for one in plan.ablation(REVIEWS, chosen(REVIEWS)):
        base = mains[one.arm.name, one.seed]
        changed = {key for key in base if one.pipeline[key] != base[key]}
        assert changed == ({"rewards"} if one.setting.startswith("kl") else {"algorithm"}), one.key
        made[one.arm.name, one.setting] += 1
    wanted = {one for group in plan.ABLATIONS.values() for one in group}
    assert wanted == set(made) | set(plan.BASES)
    assert set(made.values()) == {5}
    for arm, setting in plan.BASES:
        option, _, value = setting.partition("=")
        if option != "kl":
            assert plan.arms(REVIEWS)[arm].algorithm["nlpo"][option] == json.loads(value)


def test_the_pipelines_are_accepted(tmp_path):
    registry = Registry()
    seen = {
        (one.world.name, one.arm.name, one.setting if one.stage == "ablation" else ""): one
        for one in everything()
    }
    for one in seen.values():
        load_pipeline(tmp_path / "pipeline.yaml", registry=registry, text=json.dumps(one.pipeline))


# -- what is read off a run -------------------------------------------------------------------------------


def at(iteration: int, reward: float, kl: float = 1.0, grammar: float = 0.9) -> Point:
    return Point(iteration, 100 * iteration, reward, kl, grammar, 10.0)


def record(
    key: str, digest: str, reward: float, *, kl: float = 2.0, grammar: float = 0.9, broke: str | None = None
) -> Record:
    curve = (at(0, 0.0, 0.0), at(5, reward / 2, kl / 2), at(10, reward, kl, grammar))
    end = None if broke else curve[-1]
    return Record(key, digest, 1.5, 480, 30, {"torch": "2"}, curve, curve[1:], end, end, broke)


def test_records_come_back_from_their_line():
    one = record("main/toy-reviews/ppo/3", "abc", 0.75)
    assert Record.of(one.line()) == one
    broken = record("main/toy-reviews/ppo/4", "abc", 0.75, broke="the loss is not finite")
    assert Record.of(broken.line()) == broken


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([at(0, 0.0), at(5, 0.5), at(10, 0.6)], False),
        ([at(0, 0.0), at(5, 0.5), at(10, 0.24)], True),  # lost its gain
        ([at(0, 0.0), at(5, 0.5), at(10, 0.24), at(15, 0.6)], True),  # though it came back
        ([at(0, 0.0), at(5, 0.08), at(10, -0.05)], False),  # never had a gain to lose
        ([at(0, 0.0), at(5, 0.5, grammar=0.44)], True),  # lost its language
        ([at(0, 0.0), at(5, 0.5, kl=20.5)], True),  # lost contact
    ],
)
def test_what_counts_as_collapsed(curve, expected):
    assert measures.collapsed(curve, 20.0) is expected


def test_reward_at_a_kl_is_linear_in_its_root():
    curve = [at(0, 0.0, 0.0), at(5, 0.2, 1.0), at(10, 0.6, 4.0), at(15, 0.5, 2.0), at(20, 0.9, 9.0)]
    assert measures.reward_at(curve, 0.25) == pytest.approx(0.1)
    assert measures.reward_at(curve, 2.25) == pytest.approx(0.4)  # where it first came there
    assert measures.reward_at(curve, 9.0) == pytest.approx(0.9)
    assert measures.reward_at(curve, 9.1) is None


def test_curves_from_metrics():
    def trained(i: int, reward: float) -> dict[str, float]:
        return {"iteration": i, "responses": 4.0, "tokens": 50.0, "length": 12.5, "reward/r": reward} | {
            "kl/per_response": 0.5,
            "reward/toy-grammar": 0.75,
        }

    def evaluated(i: int) -> dict[str, float]:
        return {"iteration": i, "eval/r": 0.1 * i, "eval/kl/per_response": 2.0, "eval/length": 9.0}

    curve, own = measures.curves(
        [evaluated(0), trained(1, 0.2), trained(2, 0.4), evaluated(2), trained(3, 1.0), evaluated(3)], "r"
    )
    assert [(p.iteration, p.tokens) for p in curve] == [(0, 0), (2, 100), (3, 150)]
    assert [p.grammar for p in curve] == [1.0, 1.0, 1.0]
    assert own[0] == Point(2, 100, pytest.approx(0.3), 0.5, 0.75, 12.5)
    assert own[1].reward == 1.0


# -- choosing ---------------------------------------------------------------------------------------------


def tuned(made: Callable[[plan.Planned], Record]) -> dict[str, Record]:
    return {one.key: made(one) for one in plan.tuning(REVIEWS)}


def by_trial(one: plan.Planned) -> Record:
    """The higher the learning rate, the higher reward and KL; a grammar that suffers from the highest."""
    place = REVIEWS.lrs.index(one.trial.lr)
    made = record(one.key, one.digest, 0.2 + 0.2 * place, kl=1.0 + 0.9 * place)
    return replace(made, final=at(10, 0.2 + 0.2 * place, 1.0 + 0.9 * place, 0.7 if place == 3 else 0.9))


def test_the_best_trial_that_qualifies_is_chosen():
    picked = plan.choose(REVIEWS, tuned(by_trial))
    assert set(picked.values()) == {plan.Trial(4e-4, 0.05)}  # the first of two alike


def test_collapsed_and_broken_trials_do_not_qualify():
    def made(one: plan.Planned) -> Record:
        if one.trial.lr == 4e-4 and one.seed == plan.TUNING_SEEDS[1]:
            return record(one.key, one.digest, 0.9, grammar=0.1)
        return by_trial(one)

    assert set(plan.choose(REVIEWS, tuned(made)).values()) == {plan.Trial(2e-4, 0.05)}

    def broken(one: plan.Planned) -> Record:
        return (
            record(one.key, one.digest, 0.9, broke="the loss is not finite")
            if one.trial.lr > 1e-4
            else by_trial(one)
        )

    assert set(plan.choose(REVIEWS, tuned(broken)).values()) == {plan.Trial(1e-4, 0.05)}


def test_where_no_trial_qualifies_the_smallest_kl_is_chosen():
    def made(one: plan.Planned) -> Record:
        return record(one.key, one.digest, 0.5, kl=9.0 - one.trial.coef - 100 * one.trial.lr)

    assert set(plan.choose(REVIEWS, tuned(made)).values()) == {plan.Trial(8e-4, 0.15)}


# -- results and report -----------------------------------------------------------------------------------


def test_results_are_kept_by_run_and_plan(tmp_path):
    one, two = plan.tuning(REVIEWS)[:2]
    results.add(record(one.key, "of another plan", 0.1), tmp_path)
    results.add(record(two.key, two.digest, 0.2), tmp_path)
    assert set(results.read([one, two], tmp_path)) == {two.key}
    results.add(record(one.key, one.digest, 0.3), tmp_path)
    found = results.read([one, two], tmp_path)
    assert found[one.key].last.reward == 0.3
    assert len(results.file("tuning", "toy-reviews", tmp_path).read_text().splitlines()) == 2


def filled(folder: Path, world: plan.World) -> None:
    """Results of a whole world: NLPO earns 0.1 more than PPO on every seed, and swings as much."""
    picked = {one.key: record(one.key, one.digest, 0.5) for one in plan.tuning(world)}
    trial = plan.choose(world, picked)
    for one in [*plan.main(world, trial), *plan.ablation(world, trial)]:
        reward = 0.5 + 0.01 * (one.seed % 3) + (0.1 if one.arm.name == plan.NLPO else 0.0)
        reward += 0.001 * (one.seed == 1) * (one.arm.name == plan.NLPO)
        picked[one.key] = record(one.key, one.digest, reward)
    for stage in plan.STAGES:
        lines = [made.line() for key, made in picked.items() if key.startswith(stage)]
        if lines:
            results.file(stage, world.name, folder).write_text("\n".join(lines) + "\n")


def test_a_difference_is_found_and_none_is_not(tmp_path):
    filled(tmp_path, REVIEWS)
    study = analysis.studied(REVIEWS, tmp_path)
    assert study is not None
    found = {(c.arm, c.other): c for c in analysis.family(study, analysis.FINAL)}
    assert set(found) == set(plan.COMPARISONS)
    better, same = found[plan.NLPO, plan.PPO], found["a2c", plan.PPO]
    assert better.difference.mean == pytest.approx(0.1, abs=1e-3)
    assert better.difference.count == 10
    assert better.p_holm < 0.001
    assert better.p_flips == 2 / 1024
    assert same.difference.mean == 0.0
    assert same.p_holm == 1.0
    assert [s.collapsed for s in analysis.stability(study)] == [(0, 10)] * 5
    no_change = analysis.against_base(study, plan.NLPO, "top_p=0.5", "top_p=0.9")
    assert no_change is not None
    assert no_change.mean == 0.0
    assert no_change.count == 5


def test_the_report_is_written_from_what_is_there(tmp_path, capsys):
    filled(tmp_path, REVIEWS)
    filled(tmp_path, plan.WORLDS["toy-numbers"])
    report.write(tmp_path, list(plan.WORLDS))
    assert "toy-keywords: its tuning is not complete" in capsys.readouterr().out
    table = (tmp_path / "table.md").read_text()
    assert "| `nlpo-paper` − `ppo` | +0.100 ± " in table
    assert "refresh = never" in table
    assert "nan" not in table
    assert "inf" not in table
    assert "| toy-reviews | `nlpo-paper` | 0.6" in (tmp_path / "readme.md").read_text()
    for name in ("curves-toy-reviews", "curves-toy-numbers", "frontier", "ablations"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


# -- running ----------------------------------------------------------------------------------------------


def small(stage: str, arm: str) -> plan.Planned:
    """A run of toy-numbers cut to two iterations."""
    world = plan.WORLDS["toy-numbers"]
    train = {**world.pipeline["train"], "iterations": 2, "prompts": 4}
    evaluate = {**world.pipeline["evaluate"], "every": 1, "examples": 4}
    world = replace(world, pipeline={**world.pipeline, "train": train, "evaluate": evaluate})
    return plan.Planned(stage, world, plan.arms(world)[arm], plan.trials(world)[0], "", 7)


@pytest.mark.slow
def test_runs_are_made_in_processes_of_their_own(tmp_path):
    made: dict[str, Record] = {}
    todo = [small("main", plan.PPO), small("main", plan.NLPO), small("tuning", "a2c")]
    failed = runner.run_all(todo, tmp_path, 2, lambda r: made.update({r.run: r}))
    assert failed == []
    assert set(made) == {one.key for one in todo}
    for one in made.values():
        assert [p.iteration for p in one.curve] == [0, 1, 2]
        assert one.steps == 6
        assert one.responses == 8
        assert one.final is not None
        assert one.nucleus is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_cannot_be_made_is_named(tmp_path, capfd):
    one = small("main", plan.PPO)
    broken = replace(one, arm=replace(one.arm, algorithm={"ppo": {"clipp": 1}}))
    assert runner.run_all([broken], tmp_path, 1, lambda r: None) == [broken.key]
    assert "clipp" in capfd.readouterr().err
