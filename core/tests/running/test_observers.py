"""`observers` watch a run: they see where it stands, change nothing, and are no part of what its numbers depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from rlalign.config.load import load_pipeline
from rlalign.errors import ComponentError, ConfigError
from rlalign.interface.component import Component
from rlalign.interface.hooks import WATCHING, hookimpl
from rlalign.interface.run import Run
from rlalign.running import loop
from rlalign.running.members import HOOKS
from rlalign.running.opening import open_run
from rlalign.running.report import describe
from rlalign.testing import ComponentTests, registry, run, session
from rlalign.testing.bench import Silence, logged, stop_early, stopped_and_resumed

PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 5}},
    "rewards": ["token-sum", "kl"],
    "algorithm": ["policy-gradient"],
    "generation": {"samples": 3, "max_new_tokens": 5},
    "train": {"iterations": 3, "prompts": 3, "lr": 0.01},
    "evaluate": {"every": 2, "split": "val", "examples": 2},
}


class Watcher(Component):
    """Writes down all that it is told."""

    told: ClassVar[list[Any]] = []

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen = 0

    def setup(self, run: Run) -> None:
        torch.rand(7)  # which nobody else notices
        self.told.append(("setup", run.folder.name))

    @hookimpl
    def phase_started(self, run: Run) -> None:
        self.told.append(("started", run.phase, run.iteration, run.tick, run.step, self.seen))

    @hookimpl
    def iteration_done(self, run: Run, metrics: Mapping[str, float]) -> None:
        torch.rand(3)
        self.seen += 1
        self.told.append(("done", run.phase, run.iteration, run.tick, run.step, "loss" in metrics))

    @hookimpl
    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
        self.told.append(("evaluated", run.phase, run.iteration, run.tick, "eval/length" in metrics))

    @hookimpl
    def run_ended(self, run: Run, error: Exception | None) -> None:
        self.told.append(("ended", type(error).__name__, (run.folder / "model").exists()))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


EXTRA: dict[str, type[Any]] = {"watcher": Watcher}


@pytest.fixture(autouse=True)
def told() -> list[Any]:
    Watcher.told.clear()
    return Watcher.told


def test_an_observer_is_told_what_happens(tmp_path: Path, told: list[Any]) -> None:
    run(tmp_path, {**PIPELINE, "observers": "watcher"}, EXTRA, name="one")
    assert told == [
        ("setup", "one"),
        ("started", "policy-gradient", 0, 0, 0, 0),
        ("evaluated", "policy-gradient", 0, 0, True),
        ("done", "policy-gradient", 1, 1, 1, True),
        ("done", "policy-gradient", 2, 2, 2, True),
        ("evaluated", "policy-gradient", 2, 2, True),
        ("done", "policy-gradient", 3, 3, 3, True),
        ("evaluated", "policy-gradient", 3, 3, True),
        ("ended", "NoneType", True),
    ]


def test_a_resumed_run_tells_where_it_goes_on(tmp_path: Path, told: list[Any]) -> None:
    pipeline = {**PIPELINE, "observers": ["watcher"]}
    stopped_and_resumed(tmp_path, pipeline, EXTRA)
    at = told.index(("ended", "Interrupted", False))
    assert told[at + 1 : at + 4] == [
        ("setup", "stopped"),
        ("started", "policy-gradient", 1, 1, 1, 0),
        ("done", "policy-gradient", 2, 2, 2, True),
    ]
    assert told[-1] == ("ended", "NoneType", True)


def test_phases_inherit_observers_and_may_have_their_own(tmp_path: Path, told: list[Any]) -> None:
    base = {k: v for k, v in PIPELINE.items() if k not in ("evaluate", "algorithm")}
    phases = [
        {"name": "a", "algorithm": "policy-gradient"},
        {"name": "b", "algorithm": "policy-gradient", "observers": None},
        {"name": "c", "algorithm": "policy-gradient"},
    ]
    run(tmp_path, {**base, "phases": phases, "observers": ["watcher"], "repeat": 2}, EXTRA)
    started = [said[1:4] for said in told if said[0] == "started"]
    assert started == [("a", 0, 0), ("c", 0, 6), ("a", 0, 9), ("c", 0, 15)]
    assert [said[0] for said in told].count("setup") == [said[0] for said in told].count("ended") == 1


def test_a_run_is_the_same_with_and_without(tmp_path: Path) -> None:
    found = []
    for name, observers in (("with", ["watcher", {"watcher": None, "as": "second"}]), ("without", None)):
        _, done = run(tmp_path, {**PIPELINE, "observers": observers}, EXTRA, name=name)
        weights = {k: v.numpy().tobytes() for k, v in done.models["policy"].state_dict().items()}
        lock = json.loads(done.dir.lock.read_text())
        found.append((logged(done.dir.path), weights, done.models.policy.version, lock))
    assert found[0] == found[1]


def test_an_observer_may_come_and_go_between_two_halves(tmp_path: Path, told: list[Any]) -> None:
    whole = run(tmp_path, PIPELINE, EXTRA, name="whole")[1]
    stop_early(session(tmp_path, PIPELINE, EXTRA, name="half"))
    path = tmp_path / "runs/half/pipeline.yaml"
    said = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**said, "observers": [{"watcher": None, "as": "later"}]}))
    again = loop.resume(tmp_path / "runs/half", registry(EXTRA), display=Silence())
    again.run()
    assert logged(again.dir.path) == logged(whole.dir.path)
    assert told[1] == ("started", "policy-gradient", 1, 1, 1, 0)


def test_the_run_is_given_read_only(tmp_path: Path) -> None:
    asks = {
        "draw": lambda run: run.draw.scale(0.5),
        "score": lambda run: run.score("policy", None, ["entropy"]),
        "finish_phase": lambda run: run.finish_phase("enough"),
        "column": lambda run: run.column("x", None),
        "sample": lambda run: run.sample([]),
        "logged": lambda run: run.logged([]),
    }
    for name, ask in asks.items():

        class Asks(Component):
            @hookimpl
            def phase_started(self, run: Run) -> None:
                ask(run)  # noqa: B023

        with pytest.raises(
            ComponentError, match=rf"`phase_started` of `asks` .*run\.{name} is not for what stands"
        ):
            run(tmp_path, {**PIPELINE, "observers": "asks"}, {"asks": Asks})


def test_weights_are_watched(tmp_path: Path) -> None:
    class Writes(Component):
        @hookimpl
        def iteration_done(self, run: Run) -> None:
            with torch.no_grad():
                run.models.policy.output.add_(1)  # type: ignore[operator, union-attr]

    with pytest.raises(ComponentError, match="`iteration_done` of `writes` changed the weights"):
        run(tmp_path, {**PIPELINE, "observers": "writes"}, {"writes": Writes})


def test_an_error_ends_the_run_with_its_name(tmp_path: Path) -> None:
    class Fails(Component):
        @hookimpl
        def evaluated(self) -> None:
            raise OSError("no network")

    with pytest.raises(ComponentError, match=r"`evaluated` of `fails` .* no network"):
        run(tmp_path, {**PIPELINE, "observers": "fails"}, {"fails": Fails})


def _having(*hooks: str, **declared: Any) -> type[Component]:
    def method(self: Any) -> None:
        return None

    return type("Meddler", (Component,), {**{hook: hookimpl(method) for hook in hooks}, **declared})


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in WATCHING])
def test_a_hook_that_changes_the_run_is_refused(hook: str, tmp_path: Path) -> None:
    cls = _having("iteration_done", hook)
    text = f"pipeline.yaml:.*`meddler`: what stands under `observers` only watches a run, and this has a `{hook}` hook"
    with pytest.raises(ConfigError, match=text):
        session(tmp_path, {**PIPELINE, "observers": "meddler"}, {"meddler": cls})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "declared",
    [
        {"needs": ("logprobs",)},
        {"models": {"reference": "frozen"}},
        {"trains": ("policy",)},
        {"defaults": {"train": {"epochs": 2}}},
    ],
)
def test_a_declaration_that_changes_the_run_is_refused(declared: dict[str, Any], tmp_path: Path) -> None:
    (name,) = declared
    with pytest.raises(ConfigError, match=rf"`meddler`: .* only watches a run, and this declares `{name}`"):
        session(tmp_path, {**PIPELINE, "observers": "meddler"}, {"meddler": _having("evaluated", **declared)})


def test_what_cannot_watch_is_refused(tmp_path: Path) -> None:
    text = "`observers` takes components with one of the hooks phase_started, iteration_done, evaluated, run_ended"
    with pytest.raises(ConfigError, match=text):
        session(tmp_path, {**PIPELINE, "observers": ["token-sum"]}, {})
    with pytest.raises(ConfigError, match="only items of `rewards` and `algorithm` have one"):
        session(tmp_path, {**PIPELINE, "observers": [{"watcher": None, "weight": 2}]}, EXTRA)


def test_a_wrapper_is_refused(tmp_path: Path) -> None:
    class Wraps(Component):
        @hookimpl(wrapper=True)
        def iteration_done(self) -> Any:
            return (yield)

    with pytest.raises(ConfigError, match=r"`wraps` .* wraps `iteration_done`; only"):
        session(tmp_path, {**PIPELINE, "observers": "wraps"}, {"wraps": Wraps})


def test_the_same_component_may_also_act(tmp_path: Path) -> None:
    """Under another name, as an object of its own."""
    pipeline = {**PIPELINE, "algorithm": ["policy-gradient", "watcher"], "observers": "watcher"}
    with pytest.raises(ConfigError, match="is named `watcher` too"):
        session(tmp_path, pipeline, EXTRA)
    pipeline["observers"] = [{"watcher": None, "as": "other"}]
    _, done = run(tmp_path, pipeline, EXTRA)
    assert list(done.components.keyed)[-1] == "policy-gradient/observers/other"


def test_the_pipeline_is_told_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class Looks(Component):
        class Config(Component.Config):
            key: str = ""

        @hookimpl
        def phase_started(self, run: Run) -> None:
            run.pipeline["train"]["lr"] = 7  # a copy
            said.append((run.pipeline, self.config.key))  # type: ignore[attr-defined]

    monkeypatch.setenv("SECRET_KEY", "hunter2")
    pipeline = {**PIPELINE, "observers": [{"looks": {"key": "${oc.env:SECRET_KEY}"}}]}
    _, done = run(tmp_path, pipeline, {"looks": Looks})
    ((seen, key),) = said
    assert key == "hunter2" and seen["observers"] == [{"looks": {"key": "${oc.env:SECRET_KEY}"}}]
    assert seen["train"] == PIPELINE["train"]
    assert all(type(v) in (str, int, float, dict, list, type(None)) for v in seen.values())
    lock = json.loads(done.dir.lock.read_text())
    assert lock["environment"] == {} and "observers" not in lock["pipeline"]
    for path in done.dir.path.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), os.fspath(path)


def test_a_run_is_opened_without_them(tmp_path: Path, told: list[Any]) -> None:
    """Nobody watches who measures a finished run, and an observer that is not there is not missed."""
    base = {k: v for k, v in PIPELINE.items() if k != "algorithm"}
    phases = [{"algorithm": "policy-gradient", "observers": ["watcher"]}]
    finished, _ = run(tmp_path, {**base, "phases": phases, "observers": "watcher"}, EXTRA)
    told.clear()
    opened = open_run(finished.path, {"evaluate": {"examples": 1}}, registry=registry()).ready()
    assert opened.evaluate()["eval/responses"] == 1.0
    assert told == []


def test_check_lists_them(tmp_path: Path) -> None:
    known = registry(EXTRA)
    text = json.dumps({**PIPELINE, "observers": "watcher"})
    pipeline = load_pipeline(tmp_path / "p.yaml", registry=known, text=text)
    shown = describe(pipeline, session(tmp_path, json.loads(text), EXTRA).plans)
    assert "  observers       watcher\n" in shown
    assert "iteration_done  kl\n" in shown


class TestWatcher(ComponentTests):
    component = Watcher
    pipeline = {"algorithm": "policy-gradient", "observers": "under-test"}
