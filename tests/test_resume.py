"""Killed at any instant and resumed is never killed: to the bit, in real processes, with real signals.

`resume/forkserver.py` forks the processes, `resume/interfere.py` is what happens to them, and
`resume/runs_for_resume.py` compares what they leave. The slow tests use the installed command.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlalign.records import checkpoint, logs
from rlalign.running.callbacks import SAME_REQUEST

sys.path.insert(0, str(Path(__file__).parent / "resume"))
from runs_for_resume import (
    ENVIRONMENT,
    HERE,
    Interference,
    Runs,
    Server,
    differences,
    outcome,
    wait_until,
)

SCENARIOS = ("on-policy", "offline", "phases", "replay")
KILLED = -signal.SIGKILL


def fast(names: Iterable[str], *chosen: str) -> list[Any]:
    """Parameters of a test that is slow but for those chosen."""
    names = list(names)
    assert set(chosen) <= set(names)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Workshop:
    """Makes runs, and knows what each looks like when nothing happens to it."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        self.root = root
        self._whole: dict[tuple[str, ...], dict[str, Any]] = {}
        self.count = 0

    def runs(self, name: str, *overrides: str) -> Runs:
        self.count += 1
        return Runs(HERE / f"{name}.yaml", self.root / f"{self.count}-{name}", self.server, list(overrides))

    def whole(self, name: str, *overrides: str) -> dict[str, Any]:
        """The outcome of a run that nobody interrupts; the number of its events under `events`."""
        key = (name, *overrides)
        if key not in self._whole:
            runs = self.runs(name, *overrides)
            ended = runs.start()
            assert ended.code == 0, ended
            self._whole[key] = outcome(runs.path)
        return self._whole[key]

    def same(self, runs: Runs, common: bool = False) -> None:
        name = runs.pipeline.stem
        assert differences(self.whole(name, *runs.overrides), outcome(runs.path), common) == []


@pytest.fixture(scope="module")
def shop(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(server, tmp_path_factory.mktemp("resume"))


def calls(function: str, at: int = 1, when: str = "before", **more: Any) -> Interference:
    return "signal_at_call", {"function": function, "at": at, "when": when, **more}


def tears(log: str, at: int, bytes_written: int) -> Interference:
    return "die_in_log_line", {"log": log, "at": at, "bytes_written": bytes_written}


AT_ONCE: Interference = ("writes_at_once", {})
STEP = "rlalign.learning.optimiser:Optimiser.step"


def held(gate: Path, at: int) -> Interference:
    """The writer stands still in the n-th checkpoint, all but the manifest written, until `gate` is there."""
    return "wait_for", {"file": str(gate), "function": "rlalign.records.checkpoint:checksum_of", "at": at}


def finish(runs: Runs) -> None:
    ended = runs.go_on()
    assert ended.code == 0, ended


# -- nothing happens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_runs_are_equal(shop: Workshop, name: str) -> None:
    runs = shop.runs(name)
    finish(runs)
    shop.same(runs)
    assert len(checkpoint.find(runs.path / "checkpoints")) > 5
    moving = {key: value for key, value in shop.whole(name).items() if "/models/policy/table" in key}
    assert len(set(map(str, moving.values()))) > 5, "nothing is learned: the comparison would show nothing"


def test_the_scenarios_hold_what_they_should(shop: Workshop) -> None:
    whole = {name: shop.whole(name) for name in SCENARIOS}
    assert sum(key.startswith("dropped.jsonl") for key in whole["on-policy"]) > 2
    assert sum(key.startswith("rows/grow-2.jsonl") for key in whole["phases"]) == 12
    assert sum(key.startswith("columns/") for key in whole["offline"]) == 2
    assert any(key.endswith("components/3:kl/coef") or "kl/coef" in key for key in whole["on-policy"])
    assert any("models/slow" in key for key in whole["phases"])
    assert any("replay/packed" in key for key in whole["replay"])


def test_a_run_holds_what_the_design_lists(shop: Workshop) -> None:
    runs = shop.runs("phases")
    finish(runs)
    there = {path.name for path in runs.path.iterdir() if not path.name.startswith(".")}
    assert there == {
        *("pipeline.yaml", "lock.json", "metrics.jsonl", "samples.jsonl", "learned.jsonl", "events"),
        *("checkpoints", "remembered", "rows", "model"),
    }
    assert {path.name for path in (runs.path / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    lock = json.loads((runs.path / "lock.json").read_text())
    assert {"packages", "plugins", "data", "models", "seed", "threads", "dtype", "device"} <= set(lock)


# -- killed at random --------------------------------------------------------------------------------


def events_of(shop: Workshop, name: str) -> int:
    runs = shop.runs(name)
    into = shop.root / f"events-{name}"
    ended = runs.start(("count_events", {"into": str(into)}))
    assert ended.code == 0, ended
    return int(into.read_text())


def kill_at_random(shop: Workshop, name: str, kills: int, seed: int) -> None:
    """Kill at random instants until there were `kills` or the run is done; then let it finish.

    One in four dies while it is set up or resumed, the others while it runs.
    """
    runs, instants = shop.runs(name), random.Random(f"{name} {seed}")
    events, killed = events_of(shop, name), 0
    while killed < kills:
        instant: dict[str, Any] = {"at": instants.randrange(1, events)}
        if instants.random() < 0.25:
            instant = {"at": instants.randrange(1, 300_000), "since": "rlalign.config.places:read"}
        ended = runs.go_on(("signal_at_event", instant))
        if ended.code == 0:
            break
        assert ended.code == KILLED, ended
        killed += 1
    assert killed > 0
    finish(runs)
    shop.same(runs)


@pytest.mark.parametrize("name", fast(SCENARIOS, "phases"))
def test_killed_three_times(shop: Workshop, name: str) -> None:
    kill_at_random(shop, name, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_ten_times(shop: Workshop, name: str, seed: int) -> None:
    kill_at_random(shop, name, kills=10, seed=seed)


LONGER = {
    "on-policy": ["train.iterations=150", "evaluate.every=10"],
    "offline": ["train.passes=40", "evaluate.every=20"],
    "phases": ["repeat=8"],
    "replay": ["train.iterations=150", "evaluate.every=10"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_command_killed_ten_times(shop: Workshop, name: str) -> None:
    """No fork server: the installed command, killed by the clock, the checkpoints as they come."""
    overrides = [*LONGER[name], "checkpoints.last=2", "checkpoints.every=null"]
    runs, instants = shop.runs(name, *overrides), random.Random(name)
    command, killed = [Path(sys.executable).with_name("rlalign"), "run", "--plain"], 0
    for _ in range(10):
        first = not runs.path.exists()
        new = [runs.pipeline, *overrides, "--name", "run", "--runs", runs.root]
        output = runs.root.with_suffix(".output")
        process = subprocess.Popen(
            [*command, *(new if first else ["--resume", runs.path])],
            env=os.environ | ENVIRONMENT,
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None and "iterations" not in output.read_text():
            time.sleep(0.01)
        try:
            code = process.wait(instants.uniform(0, 0.25))  # ten of them fit into a quick run
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        assert code in (0, KILLED), output.read_text()
        if code == 0:
            break
        killed += 1
    assert killed > 2
    finish(runs)
    shop.same(runs, common=True)


# -- killed at chosen instants -----------------------------------------------------------------------

CHOSEN: dict[str, tuple[str, Interference]] = {
    "between two optimiser steps": (
        "on-policy",
        calls(STEP, 7, "after"),
    ),
    "in an optimiser step": ("on-policy", calls("rlalign.learning.optimiser:Optimiser.gradient_norm", 12)),
    "in the rollout": ("on-policy", calls("rlalign_plugin_table:TableDecoder.advance", 50)),
    "in an evaluation": ("on-policy", calls("rlalign.running.iterating:evaluate", 3)),
    "in the first piece of a column": ("offline", calls("rlalign.records.columns:_checked", 1)),
    "in the second piece of a column": ("offline", calls("rlalign.records.columns:_checked", 2, "after")),
    "before a column's progress": ("offline", calls("rlalign.records.columns:write_atomic", 2)),
    "after a column's progress": ("offline", calls("rlalign.records.columns:write_atomic", 2, "after")),
    "with half a file of a checkpoint": (
        "phases",
        ("die_in_file", {"function": "rlalign.records.tensors:save_file", "at": 9, "share": 0.5}),
    ),
    "with an empty file of a checkpoint": (
        "on-policy",
        ("die_in_file", {"function": "rlalign.records.tensors:save_file", "at": 4, "share": 0.0}),
    ),
    "before a checkpoint is synced": ("phases", calls("rlalign.records.checkpoint:sync", 30)),
    "before a checkpoint gets its name": ("on-policy", calls("os:rename", 4)),
    "after a checkpoint got its name": ("on-policy", calls("os:rename", 4, "after")),
    "in a line of metrics": ("on-policy", tears("metrics.jsonl", 6, 50)),
    "after a line of metrics": ("on-policy", tears("metrics.jsonl", 6, 10**6)),
    "in a line of samples": ("on-policy", tears("samples.jsonl", 9, 3)),
    "in a line of what was learned from": ("on-policy", tears("learned.jsonl", 9, 30)),
    "in a line about what was dropped": ("on-policy", tears("dropped.jsonl", 3, 20)),
    "in a row for a later phase": ("phases", tears("rows/grow-2.jsonl", 6, 90)),
    "in the first row for a later phase": ("phases", tears("rows/grow-1.jsonl", 1, 1)),
    "before a log is begun": ("phases", calls("rlalign.records.logs:Logs._remember", 4)),
    "after a log is begun": ("phases", calls("rlalign.records.logs:Logs._remember", 4, "after")),
    "before models are made ready": ("phases", calls("rlalign.running.models:Models.prepare", 2)),
    "after models are made ready": ("phases", calls("rlalign.running.models:Models.prepare", 5, "after")),
    "after a phase's last iteration": (
        "phases",
        calls("rlalign.running.models:Models.check_guard", 2, "after"),
    ),
    "before the first checkpoint": ("phases", calls("rlalign.records.checkpoint:write", 1)),
    "after the first checkpoint": ("phases", calls("rlalign.records.checkpoint:write", 1, "after")),
    "after the last checkpoint": ("on-policy", calls("rlalign.records.checkpoint:write", 10, "after")),
    "before the model is saved": ("on-policy", calls("rlalign.running.loop:save_folder", 1)),
    "when the model is half saved": ("on-policy", calls("rlalign_plugin_table:Table.save", 1, "after")),
    "after the model is saved": ("on-policy", calls("rlalign.running.loop:save_folder", 1, "after")),
    "before the run has its name": ("on-policy", calls("rlalign.records.rundir:_claim", 1)),
    "when the run has its name": ("on-policy", calls("rlalign.records.rundir:_claim", 1, "after")),
}


@pytest.mark.parametrize(
    "instant",
    fast(
        CHOSEN,
        *("in the rollout", "after a column's progress", "with half a file of a checkpoint"),
        *("before a checkpoint gets its name", "in a row for a later phase", "when the model is half saved"),
    ),
)
def test_killed(shop: Workshop, instant: str) -> None:
    name, interference = CHOSEN[instant]
    runs = shop.runs(name)
    ended = runs.start(interference)
    assert ended.code == KILLED, ended
    finish(runs)
    shop.same(runs)


RESUMING: dict[str, Interference] = {
    "before the models have their weights": calls("rlalign.running.models:Models.load_state"),
    "before the logs are cut": calls("rlalign.records.logs:Logs.cut"),
    "when one log is cut": calls("os:truncate", 1, "after"),
    "when the logs are cut": calls("rlalign.records.logs:Logs.cut", 1, "after"),
    "before the first iteration": calls("rlalign.running.iterating:run_iteration"),
    "before the next checkpoint": calls("rlalign.records.checkpoint:write"),
    "when one log is removed": calls("pathlib:Path.unlink", 1, "after"),
    "when old checkpoints are cleared": calls("rlalign.records.checkpoint:settle", 1, "after"),
    "after the next checkpoint": calls("rlalign.records.checkpoint:write", 1, "after"),
}


def test_killed_again_while_it_resumes(shop: Workshop) -> None:
    """One run meets all of these one after the other."""
    runs = shop.runs("phases")
    assert runs.start(AT_ONCE, tears("rows/grow-1.jsonl", 7, 30)).code == KILLED
    for instant, interference in RESUMING.items():
        ended = runs.resume(interference)
        assert ended.code == KILLED, (instant, ended)
    finish(runs)
    shop.same(runs)


CHANGING: dict[str, Interference] = {
    "before the change is written": calls("rlalign.records.rewriting:write_atomic", 1),
    "when it stands": calls("rlalign.records.rewriting:write_atomic", 1, "after"),
    "when the pipeline is rewritten": calls("rlalign.records.rewriting:write_atomic", 2, "after"),
    "when the lock is rewritten": calls("rlalign.records.rewriting:write_atomic", 3, "after"),
    "before the next checkpoint": calls("rlalign.records.checkpoint:write"),
    "after the next checkpoint": calls("rlalign.records.checkpoint:write", 1, "after"),
}


@pytest.mark.parametrize("instant", fast(CHANGING, "when it stands", "when the pipeline is rewritten"))
def test_killed_while_it_is_changed(shop: Workshop, instant: str) -> None:
    """The change is made or not; once it is, the run ends as one whose change nobody interrupted."""
    quiet, runs = shop.runs("on-policy"), shop.runs("on-policy")
    for each in (quiet, runs):
        assert each.start(AT_ONCE, calls(STEP, 9)).code == KILLED
    change = ("train.lr=0.3", "--extend", "2")
    assert runs.resume(CHANGING[instant], options=change).code == KILLED
    finish(runs)
    if instant == "before the change is written":
        shop.same(runs)
        return
    ended = quiet.resume(options=change)
    assert ended.code == 0 and "inexact from here on" in ended.output, ended
    assert differences(outcome(quiet.path), outcome(runs.path)) == []


def test_an_old_commit_point_that_was_half_deleted_is_no_commit_point(shop: Workshop) -> None:
    runs = shop.runs("on-policy", "checkpoints.last=2")
    assert runs.start(calls("os:rmdir", 3)).code == KILLED
    left = [path.name for path in (runs.path / "checkpoints").iterdir()]
    assert any(name.startswith(".old-") for name in left), left
    finish(runs)
    assert sorted(os.listdir(runs.path / "checkpoints")) == ["00000009", "00000010"]
    shop.same(runs, common=True)


def test_without_a_commit_point_a_run_starts_again(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    assert runs.start(calls("rlalign.records.checkpoint:write")).code == KILLED
    assert (runs.path / "metrics.jsonl").stat().st_size > 0
    ended = runs.resume()
    assert ended.code == 0 and "no checkpoint yet: the run starts again" in ended.output, ended
    shop.same(runs)


def test_commit_points_as_often_and_as_many_as_asked(shop: Workshop) -> None:
    runs = shop.runs("on-policy", "checkpoints.every=3", "checkpoints.last=2")
    assert runs.start(AT_ONCE, calls(STEP, 7 * 4 + 1)).code == KILLED
    assert checkpoint.find(runs.path / "checkpoints") == [3, 6]
    finish(runs)
    assert checkpoint.find(runs.path / "checkpoints") == [9, 10]
    shop.same(runs)


# -- while the writer is at work -------------------------------------------------------------------------


def test_the_run_goes_on_while_a_checkpoint_is_written_and_may_be_killed_then(shop: Workshop) -> None:
    """The writer stands still in the third checkpoint; the fourth iteration learns, and is killed half-way."""
    runs, gate = shop.runs("on-policy"), shop.root / "never"
    ended = runs.start(held(gate, 3), calls(STEP, 3 * 4 + 2, once=f"{gate}.here"))
    assert ended.code == KILLED and gate.with_name("never.here").exists(), ended
    assert checkpoint.find(runs.path / "checkpoints") == [1, 2]
    assert (runs.path / "checkpoints/.tmp-00000003").is_dir()
    assert len((runs.path / "metrics.jsonl").read_text().splitlines()) == 5, "two of them are evaluations"
    finish(runs)
    shop.same(runs)


@pytest.mark.parametrize("name", fast(SCENARIOS, "on-policy"))
def test_a_checkpoint_that_is_written_late_holds_what_was(shop: Workshop, name: str) -> None:
    """Models, optimiser, states of components: all as they stood when it was begun, at every checkpoint."""
    runs = [shop.runs(name, "checkpoints.last=99"), shop.runs(name, "checkpoints.last=99")]
    for each, interference in zip(runs, (AT_ONCE, ("writes_late", {"seconds": 0.03})), strict=True):
        ended = each.start(interference)
        assert ended.code == 0, ended
    at_once, late = (outcome(each.path) for each in runs)
    assert len(checkpoint.find(runs[0].path / "checkpoints")) > 3
    assert differences(at_once, late) == []


def test_the_next_checkpoint_waits_for_the_one_before(shop: Workshop) -> None:
    runs, gate = shop.runs("on-policy"), shop.root / "queue"
    process = runs.begin(held(gate, 3))
    wait_until(gate.with_name("queue.here"))
    rows = runs.path / "metrics.jsonl"
    wait_for_lines(rows, 6)  # four iterations and two evaluations
    time.sleep(0.2)
    assert len(rows.read_text().splitlines()) == 6 and checkpoint.find(runs.path / "checkpoints") == [1, 2]
    gate.touch()
    assert process.wait().code == 0
    shop.same(runs)


def wait_for_lines(log: Path, count: int) -> None:
    until = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert time.monotonic() < until, log
        time.sleep(0.005)


def test_asked_to_stop_it_waits_for_the_writer(shop: Workshop) -> None:
    runs, gate = shop.runs("on-policy"), shop.root / "asked"
    process = runs.begin(held(gate, 3))
    wait_until(gate.with_name("asked.here"))
    process.signal(signal.SIGINT)
    while "once more" not in process.output.read_text():
        time.sleep(0.005)
    gate.touch()
    ended = process.wait()
    assert ended.code == 130 and "and saved" in ended.output, ended
    found = checkpoint.find(runs.path / "checkpoints")
    assert found[:3] == [1, 2, 3] and f"stopped after iteration {found[-1]} of" in ended.output
    assert not list((runs.path / "checkpoints").glob(".*"))
    finish(runs)
    shop.same(runs)


def test_asked_twice_it_gives_up_the_checkpoint_that_is_written(shop: Workshop) -> None:
    runs, gate = shop.runs("on-policy"), shop.root / "twice"
    process = runs.begin(held(gate, 3))
    wait_until(gate.with_name("twice.here"))
    process.signal(signal.SIGINT)
    while "once more" not in process.output.read_text():
        time.sleep(0.005)
    time.sleep(SAME_REQUEST)
    process.signal(signal.SIGINT)
    time.sleep(0.1)
    gate.touch()
    ended = process.wait()
    assert ended.code == -signal.SIGINT and "stopped at once; the last checkpoint stands" in ended.output
    assert os.listdir(runs.path / "checkpoints") and checkpoint.find(runs.path / "checkpoints") == [1, 2]
    assert not list((runs.path / "checkpoints").glob(".*"))
    finish(runs)
    shop.same(runs)


def test_a_run_is_not_over_before_its_last_checkpoint_is_whole(shop: Workshop) -> None:
    runs, gate = shop.runs("on-policy"), shop.root / "over"
    process = runs.begin(held(gate, 10))
    wait_until(gate.with_name("over.here"))
    time.sleep(0.2)
    assert not (runs.path / "model").exists() and checkpoint.find(runs.path / "checkpoints")[-1] == 9
    gate.touch()
    assert process.wait().code == 0
    shop.same(runs)


# -- asked to stop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fast(SCENARIOS, "phases"))
@pytest.mark.parametrize("asked", ["SIGINT", "SIGTERM"])
def test_asked_to_stop(shop: Workshop, name: str, asked: str) -> None:
    """It finishes the iteration, commits, says how to go on, and exits with 130."""
    number = signal.Signals[asked]
    runs = shop.runs(name, "checkpoints.every=4")
    ended = runs.start(calls("rlalign.running.iterating:run_iteration", 3, number=number))
    assert ended.code == 130, ended
    assert "stopping after this iteration; once more to stop at once" in ended.output
    assert "stopped after iteration 3 of" in ended.output and "stopped: " not in ended.output
    assert f"`rlalign run --resume {runs.path}`" in ended.output and "Traceback" not in ended.output
    assert checkpoint.find(runs.path / "checkpoints") == [3]
    for log in runs.path.glob("*.jsonl"):
        assert all(json.loads(line) for line in log.read_text().splitlines())
    finish(runs)
    shop.same(runs, common=True)


def test_asked_twice_it_stops_at_once(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    gate = shop.root / "gate"
    process = runs.begin(("wait_for", {"file": str(gate), "function": STEP, "at": 9}))
    wait_until(gate.with_name("gate.here"))
    process.signal(signal.SIGINT)
    while "once more" not in process.output.read_text():
        time.sleep(0.005)
    time.sleep(SAME_REQUEST)
    process.signal(signal.SIGINT)
    ended = process.wait()
    assert ended.code == -signal.SIGINT, ended
    assert "stopped at once; the last checkpoint stands" in ended.output
    finish(runs)
    shop.same(runs)


def test_asked_to_stop_before_it_runs(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    ended = runs.start(calls("rlalign.records.rundir:RunDir.create", number=signal.SIGINT))
    assert ended.code == 130 and ended.output.endswith(" …\nstopped before the run began\n"), ended
    assert not runs.path.exists()


@pytest.mark.slow
def test_asked_to_stop_at_any_instant(shop: Workshop) -> None:
    """The handler runs between any two steps of the program, also within a print."""
    events, instants = events_of(shop, "baseline"), random.Random(0)
    for _ in range(20):
        runs = shop.runs("baseline")
        ended = runs.start(
            ("signal_at_event", {"at": instants.randrange(1, events), "number": signal.SIGINT})
        )
        assert ended.code in (0, 130), ended
        finish(runs)
        shop.same(runs, common=True)


def test_asked_to_stop_in_the_last_iteration_it_finishes(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    ended = runs.start(calls("rlalign.running.iterating:run_iteration", 10, number=signal.SIGINT))
    assert ended.code == 0, ended
    shop.same(runs)


# -- resuming what should not be, or need not be ------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("environment", ["as it was", "changed"])
def test_a_finished_run_is_left_alone(shop: Workshop, environment: str) -> None:
    runs = shop.runs("on-policy")
    finish(runs)
    if environment == "changed":
        edit_lock(runs, seed=7)
    before = contents(runs.path)
    ended = runs.resume()
    assert ended.code == 0, ended
    assert f"{runs.path}: this run is finished" in ended.output
    assert str(runs.path / "model") in ended.output
    assert {key for key, value in contents(runs.path).items() if before.get(key) != value} <= {".running"}


def test_a_second_process_is_refused(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    assert runs.start(calls(STEP, 9)).code == KILLED
    gate = shop.root / "second"
    first = runs.begin(
        ("wait_for", {"file": str(gate), "function": STEP, "at": 5}),
        resume=True,
    )
    wait_until(gate.with_name("second.here"))
    second = runs.resume()
    assert second.code == 2, second
    assert f"process {first.pid} is writing this run" in second.output
    gate.touch()
    ended = first.wait()
    assert ended.code == 0, ended
    shop.same(runs)


def edit_lock(runs: Runs, **changes: Any) -> None:
    lock = json.loads((runs.path / "lock.json").read_text())
    (runs.path / "lock.json").write_text(json.dumps(lock | changes))


def test_a_changed_environment_is_refused(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    assert runs.start(calls(STEP, 9)).code == KILLED
    whole = json.loads((runs.path / "lock.json").read_text())
    edit_lock(runs, plugins=whole["plugins"] | {"rlalign": {"version": "0.0.9", "code": None}}, threads=2)
    ended = runs.resume()
    assert ended.code == 2, ended
    assert "plugins.rlalign.version: 0.0.9 then, 0.1.0 now" in ended.output
    assert "threads: 2 then, 1 now" in ended.output
    assert f"`rlalign run --resume {runs.path} --inexact`" in ended.output
    assert runs.resume(options=("--inexact",)).code == 0
    (noted,) = logs.read(runs.path / "inexact.jsonl")
    assert "threads: 2 then, 1 now" in noted["changed"] and noted["lost"] == []
    (runs.path / "inexact.jsonl").unlink()
    edit_lock(runs, **whole)
    different = differences(shop.whole("on-policy"), outcome(runs.path))
    assert {key.partition("/")[2] for key in different} == {"loop/lock", "README.md"}, (
        different
    )  # the card tells versions


def test_a_changed_seed_in_the_pipeline_is_refused(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    assert runs.start(calls(STEP, 9)).code == KILLED
    file = runs.path / "pipeline.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 3"))
    ended = runs.resume()
    assert ended.code == 2 and "seed: 0 then, 3 now" in ended.output, ended


def test_a_module_of_ones_own_that_changed_is_refused(shop: Workshop, tmp_path: Path) -> None:
    for name in ("offline.yaml", "components_for_resume.py"):
        (tmp_path / name).write_text((HERE / name).read_text())
    runs = Runs(tmp_path / "offline.yaml", tmp_path / "runs", shop.server)
    assert runs.start(calls(STEP, 9)).code == KILLED
    with (tmp_path / "components_for_resume.py").open("a") as file:
        file.write("\nCHANGED = True\n")
    ended = runs.resume()
    assert ended.code == 2 and "components_for_resume" in ended.output, ended
    assert runs.resume(options=("--inexact",)).code == 0


@pytest.mark.parametrize("harm", fast(["truncate", "edit", "remove"], "edit"))
def test_a_damaged_commit_point_is_refused_and_the_one_before_taken(shop: Workshop, harm: str) -> None:
    runs = shop.runs("phases")
    assert runs.start(AT_ONCE, calls(STEP, 12)).code == KILLED
    one, two = checkpoint.find(runs.path / "checkpoints")[-2:]
    file = runs.path / f"checkpoints/{two:08d}/models/policy.safetensors"
    data = file.read_bytes()
    file.unlink()  # a file that an earlier checkpoint shares stays as it is there
    if harm != "remove":
        file.write_bytes(data[:-5] if harm == "truncate" else data[:-1] + bytes([data[-1] ^ 1]))
    ended = runs.resume()
    assert ended.code == 2 and str(file) in ended.output, ended
    assert f"{one:08d} before it is whole" in ended.output
    assert f"`rlalign run --resume {runs.path} --previous`" in ended.output
    ended = runs.resume(options=("--previous",))
    assert ended.code == 0, ended
    shop.same(runs)


def test_killed_on_the_way_back_to_the_previous_commit_point(shop: Workshop) -> None:
    """What was left is left: resumed plainly it goes on from there."""
    runs = shop.runs("phases")
    assert runs.start(AT_ONCE, calls(STEP, 12)).code == KILLED
    left = checkpoint.find(runs.path / "checkpoints")[-1]
    ended = runs.resume(calls("rlalign.running.iterating:run_iteration"), options=("--previous",))
    assert ended.code == KILLED, ended
    assert checkpoint.find(runs.path / "checkpoints")[-1] == left - 1
    finish(runs)
    shop.same(runs)


def test_a_finished_run_can_go_back(shop: Workshop) -> None:
    runs = shop.runs("on-policy")
    finish(runs)
    (runs.path / "model/README.md").write_text("of the course that is left")
    ended = runs.resume(options=("--previous",))
    assert ended.code == 0, ended
    shop.same(runs)


def test_a_column_that_is_gone_is_not_computed_from_other_weights(shop: Workshop) -> None:
    runs = shop.runs("offline")
    assert runs.start(calls(STEP, 9)).code == KILLED
    (file,) = (runs.path / "columns").glob("*/values.f64")
    file.unlink()
    ended = runs.resume()
    assert ended.code == 2 and str(file) in ended.output and "Traceback" not in ended.output, ended


# -- a full disk -------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_run_at_its_last_commit_point(shop: Workshop) -> None:
    runs = shop.runs("on-policy", "policy.table.actions=200")
    full = {"megabytes": 0.1, "after": "rlalign.records.checkpoint:save_tensors", "at": 8}
    ended = runs.start(("full_disk", full))
    assert ended.code == 1, ended
    errors = [line for line in ended.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in ended.output, ended
    assert "could not be written" in errors[0] and f"`rlalign run --resume {runs.path}`" in errors[0]
    index = checkpoint.find(runs.path / "checkpoints")[-1]
    assert f"{index:08d}, is intact" in errors[0]
    assert checkpoint.damage(runs.path / f"checkpoints/{index:08d}") is None
    finish(runs)
    shop.same(runs)


# -- the comparison sees what it should ----------------------------------------------------------------

MUTANTS: dict[str, tuple[str, str, int]] = {
    "kl's coefficient": ("on-policy", "rlalign.builtin.kl:KL.load_state_dict", 3),
    "normalise's statistics": ("on-policy", "rlalign.builtin.rewards:Normalise.load_state_dict", 3),
    "the optimiser": ("on-policy", "rlalign.learning.optimiser:Optimiser.load_state_dict", 3),
    "the draw's position": ("on-policy", "rlalign.learning.draw:Draw.load_state_dict", 3),
    "the offline draw's position": ("offline", "rlalign.learning.draw:Draw.load_state_dict", 3),
    "the models": ("on-policy", "rlalign.running.models:Models.load_state", 3),
    "the baseline": ("phases", "rlalign_plugin_reinforce:Reinforce.load_state_dict", 10),
    "an algorithm's counter": ("phases", "components_for_resume:Anchored.load_state_dict", 6),
    "what is remembered": ("replay", "rlalign_plugin_replay:Replay.load_state_dict", 3),
    "the cut of the logs": ("on-policy", "rlalign.records.logs:Logs.cut", 3),
}


@pytest.mark.parametrize("forgotten", fast(MUTANTS, "the optimiser", "the draw's position"))
def test_whatever_is_forgotten_shows(shop: Workshop, forgotten: str) -> None:
    name, function, commits = MUTANTS[forgotten]
    runs = shop.runs(name)
    assert runs.start(calls("rlalign.records.checkpoint:write", commits)).code == KILLED
    ended = runs.resume(("returns", {"function": function, "value": None}))
    if ended.code == 0:
        assert differences(shop.whole(name), outcome(runs.path)) != []
    else:
        assert forgotten in ("the models", "the baseline", "the cut of the logs"), ended


@pytest.mark.slow
def test_a_baseline_that_is_not_saved_shows(shop: Workshop) -> None:
    mutant = "algorithm={'components_for_resume:ForgetfulReinforce':{}}"
    for overrides, same in (((), True), ((mutant,), False)):
        runs = shop.runs("baseline", *overrides)
        assert runs.start(calls(STEP, 5)).code == KILLED
        finish(runs)
        different = differences(shop.whole("baseline", *overrides), outcome(runs.path), common=True)
        assert (different == []) is same, different
        assert same or "model/model.safetensors" in different
