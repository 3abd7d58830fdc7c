"""benchmarks/agentic/reflect_rl: plan and pipelines are what its README says, its answers follow the rules there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlalign.config.load import load_pipeline
from rlalign_study import plan
from rlalign_study.file import Study, module_of

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "agentic" / "reflect_rl"
STUDY = Study.read(FOLDER / "study.yaml")
answers = module_of(FOLDER / "answers.py")


def test_the_plan():
    """Eight seeds of each arm, which differ in what the README says and in nothing else."""
    made = [one for world in STUDY.worlds for one in plan.main(STUDY, world, first(world))]
    assert len(made) == 72 and {one.seed for one in made} == set(range(1, 9))
    assert {one.world: None for one in made} == {"reflection": None, "stages": None}
    asked = {arm for claims in answers.CLAIMS.values() for _, *arms in claims for arm in arms}
    assert asked == set(STUDY.arms)


def first(world: str) -> dict[str, plan.Setting]:
    return {arm: plan.settings(STUDY, world, arm)[0] for arm in STUDY.arms_of(world)}


@pytest.mark.parametrize("arm", ["nobody", "contrary", "both"])
def test_its_pipelines_are_sound(arm, tmp_path):
    world = "stages" if arm == "both" else "reflection"
    one = next(one for one in plan.main(STUDY, world, first(world)) if one.arm == arm)
    pipeline = load_pipeline(tmp_path / "p.yaml", text=json.dumps(one.pipeline))
    phases = {phase.name: phase for phase in pipeline.phases}
    acting = [phases[name].task.options for name in ("first", "second", "third")]
    assert [options.model for options in acting] == [None if arm == "nobody" else "reflection"] * 3
    away = [options.env["hidden-goal"].get("away") for options in acting]
    assert away == ([1, 2, None] if arm == "both" else [None] * 3)
    assert phases["reflect"].task.options.teacher == ("contrary" if arm == "contrary" else "good")


def found(world: str, **returns: list[float]) -> SimpleNamespace:
    main = {
        arm: {seed: SimpleNamespace(metrics={"end.return": x}) for seed, x in enumerate(some)}
        for arm, some in returns.items()
    }
    return SimpleNamespace(name=world, main=main)


def test_the_answers():
    low, high = [0.1, 0.2, 0.15, 0.12], [0.6, 0.65, 0.7, 0.61]
    said = answers.answers([found("reflection", astray=high, nobody=low, blind=high, contrary=low[::-1])])
    assert "**Reflection helps.** Yes: astray − nobody = +0.497" in said[0]
    assert "Not run yet" in said[1] and "Not run yet" in said[2]
    assert "Not shown" in said[3]
    said = answers.answers([found("stages", plain=high, staged=low)])
    assert "**A curriculum helps.** No, the contrary" in said[0]
