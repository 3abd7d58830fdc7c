"""A study file becomes the runs it means, or says in which line it is wrong."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest

from rlalign_study import plan
from rlalign_study.core import ConfigError
from rlalign_study.file import Study


def first(study: Study, world: str = "three") -> dict[str, plan.Setting]:
    return {arm: plan.settings(study, world, arm)[0] for arm in study.arms_of(world)}


def test_worlds_arms_settings_and_seeds_are_multiplied(study):
    tuning = plan.tuning(study, "three")
    assert len(tuning) == 2 * 2 * 2 * 2  # arms × learning rates × prices × seeds
    assert len({one.key for one in tuning}) == len({one.hash for one in tuning}) == len(tuning)
    assert tuning[0].key == "tuning/three/rloo/lr=0.01, price=0.1/1000"
    assert tuning[0].pipeline["train"] == {"iterations": 2, "prompts": 4, "lr": 0.01}
    assert tuning[0].pipeline["rewards"] == ["bandit-payout", {"kl": {"coef": 0.1}}]
    assert tuning[0].overrides == {
        "algorithm": "rloo",
        "train.lr": 0.01,
        "rewards.kl.coef": 0.1,
        "seed": 1000,
    }
    assert study.pipeline["rewards"][1] == {"kl": {"coef": 0.5}}  # the study's own is left as it is
    main = plan.main(study, "three", first(study))
    assert [one.key for one in main] == [
        f"main/three/{arm}/{s}" for arm in ("rloo", "reinforce") for s in (0, 1)
    ]


def test_every_arm_has_the_same_trials_on_seeds_that_are_never_reported(study):
    tuning = plan.tuning(study, "three")
    assert Counter(one.arm for one in tuning) == {"rloo": 8, "reinforce": 8}
    assert {one.seed for one in tuning} == {1000, 1001}


def test_an_arm_that_tries_more_is_refused(written, tuned):
    file = written(tuned)
    text = file.read_text().replace(
        "{set: {algorithm: rloo}}", "{set: {algorithm: rloo}, grid: {lr: {train.lr: [0.1, 0.2, 0.3]}}}"
    )
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"`rloo` tries 6 settings and the other arms 4|fair"):
        plan.tuning(Study.read(file), "three")


def test_a_tuning_seed_that_is_reported_too_is_refused(written, tuned):
    study = Study.read(written(tuned.replace("[1000, 1001]", "[1, 2]")))
    with pytest.raises(ConfigError, match=r"tuning\.seeds: 1 is a reported seed too"):
        plan.tuning(study, "three")


def test_without_a_grid_nothing_is_tuned(written):
    study = Study.read(written())
    assert plan.tuning(study, "three") == []
    assert len(plan.main(study, "three", first(study))) == 4


def test_what_is_more_special_stands_above(written):
    file = written()
    file.write_text(
        file.read_text().replace(
            "worlds: {three: {}}",
            "worlds: {three: {}, two: {set: {policy: {table: {actions: 2}}}, without: [rloo], seeds: [7, 8, 9], "
            "arms: {reinforce: {train.prompts: 2}}}}",
        )
    )
    study = Study.read(file)
    runs = plan.main(study, "two", first(study, "two"))
    assert [(one.arm, one.seed) for one in runs] == [("reinforce", 7), ("reinforce", 8), ("reinforce", 9)]
    assert runs[0].pipeline["policy"] == {"table": {"actions": 2}}
    assert runs[0].pipeline["train"]["prompts"] == 2


def test_ablations_change_one_thing_and_what_changes_nothing_is_a_main_run(written):
    study = Study.read(
        written(
            """
            ablations:
              worlds: [three]
              seeds: 1
              groups: {price: {rloo: {none: {rewards.kl.coef: 0.0}, usual: {}}}}
            """
        )
    )
    (one,) = plan.ablation(study, "three", first(study))
    assert one.key == "ablation/three/rloo/price=none/0"
    (base,) = [m for m in plan.main(study, "three", first(study)) if (m.arm, m.seed) == ("rloo", 0)]
    assert {key for key in base.pipeline if base.pipeline[key] != one.pipeline[key]} == {"rewards"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.b", {"a": {"b": 9}, "list": ["x", {"y": {"z": 1}}, {"name": "n", "w": 2}]}),
        (
            "new.deep",
            {"a": {"b": 1}, "list": ["x", {"y": {"z": 1}}, {"name": "n", "w": 2}], "new": {"deep": 9}},
        ),
        ("list.x.o", {"a": {"b": 1}, "list": [{"x": {"o": 9}}, {"y": {"z": 1}}, {"name": "n", "w": 2}]}),
        ("list.y.z", {"a": {"b": 1}, "list": ["x", {"y": {"z": 9}}, {"name": "n", "w": 2}]}),
        ("list.n.w", {"a": {"b": 1}, "list": ["x", {"y": {"z": 1}}, {"name": "n", "w": 9}]}),
        ("list.0", {"a": {"b": 1}, "list": [9, {"y": {"z": 1}}, {"name": "n", "w": 2}]}),
    ],
)
def test_a_dotted_key_sets_one_thing(key, expected):
    tree = {"a": {"b": 1}, "list": ["x", {"y": {"z": 1}}, {"name": "n", "w": 2}]}
    plan.put(tree, key, 9)
    assert tree == expected


def test_placeholders_are_filled_in(written):
    file = written()
    file.write_text(
        file.read_text().replace(
            "{rloo: {set:", "{rloo: {set: {extra: '{work}/{world}-{seed}'}, seeds: [3]}, x: {set:"
        )
    )
    study = Study.read(file)
    assert plan.main(study, "three", first(study))[0].pipeline["extra"] == "{work}/three-3"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("sedes: 3", r"small.yaml:16: sedes: this key is not known"),
        ("interval: z", r"small.yaml:16: interval: Input should be 't' or 'bootstrap'"),
        (
            "compare: {pairs: [[rloo, ppo]], by: {}}",
            r":16: there is no arm `ppo`; the arms are rloo, reinforce",
        ),
        (
            "ablations: {worlds: [mars], seeds: 1, groups: {}}",
            "there is no world `mars`; the worlds are three",
        ),
        ("stability: {against: ppo, of: x}", "there is no arm `ppo`"),
        ("memory: 0", "memory: Input should be greater than 0"),
    ],
)
def test_mistakes_are_said_with_their_line(written, more, expected):
    with pytest.raises(ConfigError, match=expected):
        Study.read(written(more))


def test_all_mistakes_at_once(written):
    with pytest.raises(ConfigError) as caught:
        Study.read(written("sedes: 3\nmemory: -1"))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ("grid: {lr: {train.lr: 0.1}}", "arms.rloo: grid.lr: expected one key with a list of values"),
        ("grid: {lr: {nowhere.0.x.y: [1, 2]}}\n", None),
        ("grid: {kl: {rewards.kll.coef: [1, 2]}}", "rewards.kll.coef: there is no `kll` in this list"),
        ("grid: {lr: {seed.x: [1, 2]}}", None),
    ],
)
def test_grids_that_lead_nowhere(written, grid, expected):
    study = Study.read(written(grid + "\ntuning: {seeds: [1000], best: final.reward}"))
    if expected is not None:
        with pytest.raises(ConfigError, match=expected):
            plan.tuning(study, "three")


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: No such file"):
        Study.read(tmp_path / "nothing.yaml")


def test_rows_from_before_budgets_and_single_values_still_count(study):
    one = plan.tuning(study, "three")[0]
    said = json.dumps([one.pipeline, one.final, one.given], sort_keys=True)
    assert one.hash == hashlib.sha256(said.encode()).hexdigest()[:16]
    assert replace(one, budget={"tokens": 10.0}).hash != one.hash
    assert replace(one, names={"reward": "x"}).hash != one.hash
