"""The studies of benchmarks/: stored tables come again from stored results, and plans keep what protocols promise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlalign_study import core, plan, report, runner
from rlalign_study.analysis import Found
from rlalign_study.file import Study, seeds
from rlalign_study.plan import Planned
from rlalign_study.rows import Results, Row

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("nlpo", "offline", "pg")
PLUGINS = {"nlpo": {"readme.md": "nlpo"}}
PLUGINS["offline"] = {f"readme-{name}.md": name for name in ("a-lol", "imitation", "preference")}
PLUGINS["pg"] = {f"readme-{name}.md": name for name in ("copg", "ppo", "reinforce")}


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    return {name: Study.read(ROOT / f"benchmarks/{name}/study.yaml") for name in NAMES}


@pytest.fixture(scope="module")
def stored(studies: dict[str, Study]) -> dict[str, list[Found]]:
    """By study: its worlds, with the results that are stored."""
    found = {}
    for name, study in studies.items():
        results = Results.read(study.folder / study.results)
        assert results.notes == []
        found[name] = [Found(study, world, results) for world in study.worlds]
    return found


def everything(study: Study) -> list[Planned]:
    made = []
    for world in study.worlds:
        first = {arm: plan.settings(study, world, arm)[0] for arm in study.arms_of(world)}
        made += plan.tuning(study, world)
        made += [*plan.main(study, world, first), *plan.ablation(study, world, first)]
    return made


# -- all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("nlpo", 369), ("offline", 670), ("pg", 688)])
def test_every_stored_row_is_of_todays_plan(stored, name, count):
    assert sum(len(found.rows) for found in stored[name]) == count
    assert all(not found.waiting for found in stored[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_tables_come_again_to_the_digit(studies, stored, name):
    folder = ROOT / "benchmarks" / name / "results"
    made = report.table(studies[name], stored[name])
    assert made == (folder / "table.md").read_text().splitlines()
    for file, plugin in PLUGINS[name].items():
        lines = report.block(studies[name], stored[name], file)
        assert lines == (folder / file).read_text().splitlines()
        assert "\n".join(lines) in (ROOT / "plugins/algorithms" / plugin / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_each_run_has_a_name_and_a_plan_of_its_own(studies, name):
    runs = everything(studies[name])
    assert len({one.key for one in runs}) == len(runs)
    tuning = [one for one in runs if one.stage == "tuning"]
    assert len({one.hash for one in tuning}) == len(tuning)


@pytest.mark.parametrize("name", NAMES)
def test_tuning_never_sees_a_reported_seed_or_the_test_split(studies, name):
    for one in everything(studies[name]):
        assert (one.seed in seeds(studies[name].tuning.seeds)) == (one.stage == "tuning")
        assert one.pipeline["evaluate"]["split"] == "val"
        assert {how["split"] for how in one.final.values()} == {"val" if one.stage == "tuning" else "test"}


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_tries_eight_settings_on_two_seeds(studies, name):
    for world in studies[name].worlds:
        tried = Counter((one.arm, one.setting) for one in plan.tuning(studies[name], world))
        assert set(tried.values()) == {2}
        assert set(Counter(arm for arm, _ in tried).values()) == {8}


@pytest.mark.parametrize("name", NAMES)
def test_the_pipelines_are_accepted(studies, name):
    study = studies[name]
    some = {(one.world, one.arm, one.setting.partition(",")[2]): one for one in everything(study)}
    for one in some.values():
        core.check(one.pipeline, study.folder, study.hooks.components)


# -- nlpo ---------------------------------------------------------------------------------------------------


def test_arms_have_the_same_budget_and_differ_in_what_they_are_named_for(studies):
    study = studies["nlpo"]
    allowed = {"ppo": set(), "nlpo-paper": {"algorithm"}, "nlpo-rl4lms": {"algorithm", "generation"}}
    allowed |= {"a2c": {"algorithm", "train"}, "ppo-truncated": {"generation"}}
    for world in study.worlds:
        first = {arm: plan.settings(study, world, arm)[0] for arm in study.arms_of(world)}
        pipelines = {one.arm: one.pipeline for one in plan.main(study, world, first) if one.seed == 0}
        base, budgets = pipelines["ppo"], set()
        for arm, pipeline in pipelines.items():
            assert {key for key in base if pipeline[key] != base[key]} == allowed[arm]
            train, longest = pipeline["train"], pipeline["generation"].get("max_new_tokens")
            steps = train["iterations"] * train["epochs"] * train["minibatches"]
            budgets.add((train["iterations"], train["prompts"], longest, steps))
        assert len(budgets) == 1


def test_ablations_change_one_thing_and_the_arms_own_settings_are_what_they_say(studies):
    study = studies["nlpo"]
    first = {arm: plan.settings(study, "toy-reviews", arm)[0] for arm in study.arms}
    mains = {(one.arm, one.seed): one.pipeline for one in plan.main(study, "toy-reviews", first)}
    for one in plan.ablation(study, "toy-reviews", first):
        base = mains[one.arm, one.seed]
        changed = {key for key in base if one.pipeline[key] != base[key]}
        assert changed == ({"rewards"} if one.setting.startswith("kl") else {"algorithm"}), one.key
    nlpo = study.arms["nlpo-paper"].set["algorithm"]["nlpo"]
    groups = study.ablations.groups
    for group, option in (("top-p", "top_p"), ("refresh", "refresh")):
        (own,) = [name for name, changed in groups[group]["nlpo-paper"].items() if not changed]
        assert float(own) == nlpo[option]


def test_reward_at_a_kl_is_linear_in_its_root(studies):
    derive = studies["nlpo"].hooks.derive
    row = Row(
        "main", "w", 0, "", "done", curve={"reward": [0.0, 0.2, 0.6, 0.5, 0.9], "kl": [0.0, 1, 4, 2, 9]}
    )
    assert derive(row, {"kl_at": 0.25})["reward_at_kl"] == pytest.approx(0.1)
    assert derive(row, {"kl_at": 2.25})["reward_at_kl"] == pytest.approx(0.4)  # where it first came there
    assert derive(row, {"kl_at": 9.0})["reward_at_kl"] == pytest.approx(0.9)
    assert derive(row, {"kl_at": 9.1}) == {}


@pytest.mark.slow
def test_nlpo_runs_from_plan_to_rows(studies, tmp_path):
    study, made = studies["nlpo"], list[Row]()
    first = {arm: plan.settings(study, "toy-numbers", arm)[0] for arm in ("ppo", "nlpo-paper", "a2c")}
    todo = [one for one in plan.main(study, "toy-numbers", first) if one.seed == 0]
    for one in todo:
        one.pipeline["train"] |= {"iterations": 2, "prompts": 4}
        one.pipeline["evaluate"] |= {"every": 1, "examples": 4}
    runner.run_all(study, todo, tmp_path, 2, made.append)
    assert {row.arm for row in made} == set(first)
    for row in made:
        assert row.status == "done", row.why
        assert row.curve["iteration"] == [0, 1, 2]
        assert (row.metrics["steps"], row.metrics["responses"]) == (6, 8)
        assert {"final.reward", "nucleus.reward"} <= row.metrics.keys()
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []
