"""The checkpoint of the best evaluation is kept, known again after a resume, and can be opened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import rlalign
from rlalign import Component, Rollout, Run, Score, hookimpl
from rlalign.errors import ConfigError
from rlalign.records import checkpoint, logs
from rlalign.records.weights import fingerprint
from rlalign.running import loop
from rlalign.testing import COMPONENTS, PolicyGradient, registry, session
from rlalign.testing.bench import Silence

ONE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 4}},
    "rewards": ["token-sum"],
    "algorithm": "learns",
    "generation": {"samples": 2, "max_new_tokens": 4},
    "train": {"iterations": 8, "prompts": 2, "lr": 0.05},
    "evaluate": {"every": 1, "examples": 2, "use": ["scripted"]},
    "checkpoints": {"every": 100, "last": 1, "best": "eval/scripted/value"},
}


def scripted(values: Sequence[float]) -> type[Component]:
    """A measure that has these values, one an evaluation; the first is before the first iteration."""

    class Scripted(Component):
        count = 0

        def setup(self, run: Run) -> None:
            self.count = 0

        @hookimpl
        def reward(self, rollout: Rollout) -> Score:
            return Score(rollout.length_N * 1.0)

        @hookimpl
        def evaluate(self, run: Run, rollout: Rollout) -> Mapping[str, float]:
            self.count += 1
            return {"value": values[self.count - 1]}

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.count = state["count"]

    return Scripted


def going(
    folder: Path, values: Sequence[float], best: Any = None, **changes: Any
) -> tuple[loop.Session, dict[str, Any]]:
    given = {"learns": PolicyGradient, "scripted": scripted(values)}
    checkpoints = {**ONE["checkpoints"], **({} if best is None else {"best": best})}
    return session(folder, {**ONE, "checkpoints": checkpoints, **changes}, given, name="run"), given


def kept(run: Path) -> list[int]:
    return checkpoint.find(run / "checkpoints")


UP = [99.0, 1, 3, 2, 3, math.nan, math.inf, 0, 2]


@pytest.mark.parametrize(
    "values, best, expected",
    [
        (UP, "eval/scripted/value", 2),
        (UP, {"eval/scripted/value": "high"}, 2),
        (UP, {"eval/scripted/value": "low"}, 7),
        ([0.0, 1, 2, 3, 4, 5, 6, 7, 8], "eval/scripted/value", 8),
        ([0.0, *[5.0] * 8], "eval/scripted/value", 1),
    ],
    ids=["high", "high in words", "low", "the last", "ties"],
)
def test_the_best_is_kept_beside_the_last(
    tmp_path: Path, values: list[float], best: Any, expected: int
) -> None:
    begun, _ = going(tmp_path, values, best)
    begun.run()
    assert kept(begun.dir.path) == sorted({expected, 8})
    assert checkpoint.best_of(begun.dir.checkpoints, 8) == expected


def test_it_is_what_it_was_there(tmp_path: Path) -> None:
    """Its weights are those of a run that ends there."""
    begun, given = going(tmp_path / "a", UP)
    begun.run()
    short, _ = going(tmp_path / "b", UP, train={**ONE["train"], "iterations": 2})
    short.run()
    opened = rlalign.open(begun.dir.path, at="best", components=COMPONENTS | given)
    assert fingerprint(opened.models.policy) == fingerprint(short.models.policy)
    assert fingerprint(opened.models.policy) != fingerprint(begun.models.policy)
    assert opened.sample()[0]["iteration"] == 2
    assert (
        rlalign.open(begun.dir.path / "checkpoints/00000002", components=COMPONENTS | given).sample()
        == opened.sample()
    )
    assert opened.export(tmp_path / "model").is_dir()
    with pytest.raises(
        ConfigError, match=r"no checkpoint of iteration 5; there are those .* 2 \(best\), 8\."
    ):
        rlalign.open(begun.dir.path, at=5, components=COMPONENTS | given)
    with pytest.raises(ConfigError, match="is a checkpoint already"):
        rlalign.open(begun.dir.path / "checkpoints/00000002", at=8, components=COMPONENTS | given)
    with pytest.raises(ConfigError, match=r"is a checkpoint\. A run goes on from its last one"):
        loop.resume(begun.dir.path / "checkpoints/00000002", registry(given), display=Silence())


@pytest.mark.parametrize("stops", [range(1, 8), (3,), (5, 7)], ids=["each", "3", "5 and 7"])
def test_it_is_known_after_a_resume(tmp_path: Path, stops: Sequence[int]) -> None:
    class Stops(Silence):
        session: loop.Session | None = None

        def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
            if i in stops and self.session is not None:
                self.session.stopping = True

    whole, given = going(tmp_path / "whole", UP)
    whole.run()
    display = Stops()
    now = session(tmp_path, ONE, given, name="run", display=display)
    while True:
        display.session = now
        try:
            now.run()
            break
        except loop.Interrupted:
            now = loop.resume(tmp_path / "runs/run", registry(given), display=display)
    assert kept(now.dir.path) == kept(whole.dir.path) == [2, 8]
    states = [checkpoint.read(s.dir.checkpoints, 8).loop["best"] for s in (now, whole)]
    assert states[0] == states[1] == {"by": ["eval/scripted/value", "high"], "value": 3.0, "index": 2}


def test_going_back_finds_the_best_of_then(tmp_path: Path) -> None:
    begun, given = going(tmp_path, [0.0, 1, 5, 2, 2, 2, 2, 2, 9])
    begun.pipeline = begun.pipeline.model_copy(
        update={"checkpoints": begun.pipeline.checkpoints.model_copy(update={"last": 2, "every": 1})}
    )
    begun.run()
    assert kept(begun.dir.path) == [2, 7, 8]
    again = loop.resume(begun.dir.path, registry(given), previous=True, inexact=True, display=Silence())
    again.dir.close()
    assert kept(begun.dir.path) == [2, 7] and checkpoint.best_of(begun.dir.checkpoints, 7) == 2


def test_over_phases_it_is_the_best_of_the_whole_run(tmp_path: Path) -> None:
    train = {**ONE["train"], "iterations": 2}
    phases = [{"name": "one", "train": train}, {"name": "two", "train": train}]
    # Each phase is evaluated before its first iteration, which does not count.
    begun, given = going(tmp_path, [0.0, 1, 4, 99, 2, 3], train=None, phases=phases)
    begun.run()
    assert kept(begun.dir.path) == [2, 4]
    assert (
        rlalign.open(begun.dir.path, at="best", components=COMPONENTS | given).sample()[0]["phase"] == "one"
    )


def test_another_metric_counts_from_where_it_is_said(tmp_path: Path) -> None:
    begun, given = going(tmp_path, [0.0, 9, 9, 1, 5, 5, 5, 5, 5], train={**ONE["train"], "iterations": 2})
    begun.run()
    assert kept(begun.dir.path) == [1, 2]
    longer = loop.resume(
        begun.dir.path,
        registry(given),
        overrides=["checkpoints.best={eval/scripted/value: low}"],
        extend=3,
        display=Silence(),
    )
    longer.run()
    assert kept(begun.dir.path) == [3, 5]


def two_phases(folder: Path, best: str, first: list[str], second: list[str], **other: Any) -> loop.Session:
    """The first evaluation of each phase does not count."""
    given: dict[str, type[Any]] = {"learns": PolicyGradient, "scripted": scripted([0.0, 1, 4])}
    given["other"] = scripted([7.0] * 3)
    train = {**ONE["train"], "iterations": 2}
    phases = [
        {"name": name, "train": train, "evaluate": {**ONE["evaluate"], "use": use}}
        for name, use in (("one", first), ("two", second))
    ]
    checkpoints = {**ONE["checkpoints"], "best": best}
    return session(
        folder,
        {**ONE, "checkpoints": checkpoints, "train": None, "phases": phases, **other},
        given,
        name="run",
    )


@pytest.mark.parametrize(
    "first, second, expected",
    [(["scripted"], ["other"], 2), (["other"], ["scripted"], 4)],
    ids=["the second", "the first"],
)
def test_a_phase_that_does_not_measure_it_is_passed_over(
    tmp_path: Path, first: list[str], second: list[str], expected: int
) -> None:
    begun = two_phases(tmp_path, "eval/scripted/value", first, second)
    begun.run()
    assert kept(begun.dir.path) == sorted({expected, 4})
    assert checkpoint.best_of(begun.dir.checkpoints, 4) == expected


def test_where_no_phase_measures_it_the_last_that_might_says_so(tmp_path: Path) -> None:
    same = two_phases(tmp_path / "same", "eval/scripted/valu", ["scripted"], ["scripted"])
    with pytest.raises(ConfigError, match="this evaluation measures no `eval/scripted/valu`"):
        same.run()
    assert [row["iteration"] for row in logs.read(same.dir.metrics)] == [0]  # no other would measure more
    later = two_phases(tmp_path / "later", "eval/scripted/valu", ["other"], ["scripted"])
    with pytest.raises(ConfigError, match="this evaluation measures no `eval/scripted/valu`"):
        later.run()
    assert later.phase.settings.name == "two" and later.phase.iteration == 0


@pytest.mark.parametrize("best", ["eval/scriptd/value", {"eval/nothing": "low"}, "eval/total"])
def test_what_no_component_could_measure_is_told_at_once(tmp_path: Path, best: Any) -> None:
    with pytest.raises(ConfigError, match=r"checkpoints\.best: no evaluation measures `eval/.* scripted\)"):
        going(tmp_path, UP, best)
    assert not (tmp_path / "runs").exists()


def test_what_is_measured_of_a_run_need_not_be_that(tmp_path: Path) -> None:
    begun, given = going(tmp_path, UP)
    begun.run()
    opened = rlalign.open(begun.dir.path, use=["token-sum"], components=COMPONENTS | given)
    assert "eval/scripted" not in opened.evaluate()


@pytest.mark.parametrize("best", ["eval/scripted/valu", {"eval/scripted/nothing": "low"}])
def test_an_unknown_metric_is_told_before_anything_is_learned(tmp_path: Path, best: Any) -> None:
    begun, given = going(tmp_path, UP, best)
    with pytest.raises(ConfigError, match=r"checkpoints\.best: this evaluation measures no `eval/") as error:
        begun.run()
    assert "eval/scripted/value" in str(error.value) and "eval/length" in str(error.value)
    assert [row["iteration"] for row in logs.read(begun.dir.metrics)] == [0]
    right = ["checkpoints.best=eval/scripted/value"]
    loop.resume(begun.dir.path, registry(given), overrides=right, display=Silence()).run()
    assert kept(begun.dir.path) == [2, 8]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"checkpoints": {"best": "total"}}, "metric of evaluations, `eval/NAME`"),
        ({"checkpoints": {"best": {"eval/a": "low", "eval/b": "low"}}}, "goes by one metric"),
        ({"checkpoints": {"best": {"eval/a": "lowest"}}}, "checkpoints.best"),
        ({"checkpoints": {"best": "eval/a"}, "evaluate": None}, "nothing is evaluated; add an `evaluate` section"),
        ({"checkpoints": {"keep": 3}}, "checkpoints.keep: unknown option"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_at_once(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        session(tmp_path, {**ONE, **changes}, {"learns": PolicyGradient, "scripted": scripted(UP)})
    assert said in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_without_one_there_is_none(tmp_path: Path) -> None:
    given = {"learns": PolicyGradient, "scripted": scripted(UP)}
    session(tmp_path, {**ONE, "checkpoints": {}}, given, name="run").run()
    with pytest.raises(ConfigError, match=r"no checkpoint is its best: .* those of the iterations \d, 8"):
        rlalign.open(tmp_path / "runs/run", at="best", components=COMPONENTS | given)
