"""Run folders that were damaged, edited, moved or taken by another process: told, or as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlalign.records import checkpoint, logs
from rlalign.records.manifest import checksum_of, fingerprint

sys.path.insert(0, str(Path(__file__).parent / "resume"))
from runs_for_resume import HERE, Interference, Runs, Server, differences, outcome, wait_until

KILLED = -signal.SIGKILL
STEP = "rlalign.learning.optimiser:Optimiser.step"
NO_LOCKS: Interference = ("returns", {"function": "fcntl:flock", "value": None})
"""A file system where every process gets the lock."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def broken(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run that was killed in its second phase, which learns from the rows of the first."""
    runs = Runs(HERE / "phases.yaml", tmp_path_factory.mktemp("broken"), server)
    assert (
        runs.start(
            ("writes_at_once", {}), ("signal_at_call", {"function": STEP, "at": 6, "when": "before"})
        ).code
        == KILLED
    )
    return runs


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = Runs(HERE / "phases.yaml", tmp_path_factory.mktemp("whole"), server)
    assert runs.start().code == 0
    return outcome(runs.path)


@pytest.fixture
def runs(broken: Runs, tmp_path: Path) -> Runs:
    """A copy of the broken run, of its own."""
    shutil.copytree(broken.path, tmp_path / "root/run")
    return Runs(broken.pipeline, tmp_path / "root", broken.server)


def last(runs: Runs) -> tuple[int, dict[str, Any]]:
    """The last checkpoint, and the logs as they were there."""
    index = checkpoint.find(runs.path / "checkpoints")[-1]
    return index, checkpoint.log_sums(runs.path / "checkpoints", index)


def named(saved: dict[str, Any], start: str) -> str:
    return next(name for name in saved if name.startswith(start) and saved[name]["size"])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def inspected(runs: Runs, *arguments: Any) -> Any:
    runs.outputs += 1
    return runs.server.start([*arguments], runs.root / f"output-{runs.outputs}", []).wait()


# -- damaged --------------------------------------------------------------------------------------------

LOGS = ("metrics.jsonl", "samples.jsonl", "events/", "remembered/", "rows/")


@pytest.mark.parametrize(
    "log", ["metrics.jsonl", "rows/", *(pytest.param(log, marks=pytest.mark.slow) for log in LOGS[1:-1])]
)
def test_a_flipped_bit_in_a_log_is_noticed(runs: Runs, log: str) -> None:
    saved = last(runs)[1]
    name = named(saved, log)
    at = saved[name]["size"] // 2
    flip(runs.path / name, at)
    before = {path: path.read_bytes() for path in runs.path.rglob("*") if path.is_file()}
    ended = runs.resume()
    assert ended.code == 2, ended
    assert (
        f"{runs.path / name}: the log is not what was written (its SHA-256 differs, first in bytes "
        in ended.output
    )
    assert ("lines" in ended.output) is name.endswith(".jsonl"), ended
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {".running"}

    ended = runs.resume(options=("--inexact",))
    if log == "rows/":
        assert ended.code == 2 and "a later phase learns from it" in ended.output, ended
    else:
        assert (
            ended.code == 0 and f"lost: {runs.path / name}: the log is not what was written" in ended.output
        )
        (noted,) = logs.read(runs.path / "inexact.jsonl")
        assert [line.partition(":")[0] for line in noted["lost"]] == [str(runs.path / name)]
        if name.endswith(".jsonl"):
            assert list(logs.read(runs.path / name))


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_the_checkpoint_before_is_offered_where_its_logs_are_whole(
    runs: Runs, whole: dict[str, Any], harm: str
) -> None:
    size = last(runs)[1]["metrics.jsonl"]["size"]
    if harm == "flip":
        flip(runs.path / "metrics.jsonl", size - 5)
    else:
        os.truncate(runs.path / "metrics.jsonl", size - 5)
    ended = runs.resume()
    assert ended.code == 2 and f"--resume {runs.path} --previous`" in ended.output, ended
    assert runs.resume(options=("--previous",)).code == 0
    assert differences(whole, outcome(runs.path), common=True) == []


def test_a_lost_log_is_no_dead_end(runs: Runs) -> None:
    (runs.path / "metrics.jsonl").unlink()
    ended = runs.resume(options=("--previous",))
    assert ended.code == 2 and "no whole checkpoint before the last with whole logs" in ended.output, ended
    ended = runs.resume()
    assert ended.code == 2 and "--inexact`" in ended.output and "--previous" not in ended.output, ended
    ended = runs.resume(options=("--inexact",))
    assert ended.code == 0, ended
    (noted,) = logs.read(runs.path / "inexact.jsonl")
    assert noted["lost"] == [f"{runs.path / 'metrics.jsonl'}: the log is missing"]


def test_rows_that_were_damaged_are_not_exported(runs: Runs) -> None:
    name = named(last(runs)[1], "rows/")
    flip(runs.path / name, 40)
    ended = inspected(runs, "export", runs.path, "--samples", runs.root / "out.jsonl")
    assert ended.code == 2 and f"{name}: is not what was written" in ended.output, ended
    assert not (runs.root / "out.jsonl").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_a_damaged_lock_is_told_and_can_be_passed_over(runs: Runs, content: bytes) -> None:
    (runs.path / "lock.json").write_bytes(content)
    ended = runs.resume()
    assert ended.code == 2 and f"error: {runs.path / 'lock.json'}: is no" in ended.output, ended
    assert f"--resume {runs.path} --inexact`" in ended.output
    if content == b"":
        assert runs.resume(options=("--inexact",)).code == 0
        (noted,) = logs.read(runs.path / "inexact.jsonl")
        assert noted["changed"] == ["lock.json: was damaged, and is made anew: nothing could be compared"]
        assert inspected(runs, "export", runs.path, "--samples", runs.root / "out.jsonl").code == 0


# -- edited ---------------------------------------------------------------------------------------------


def test_a_changed_learning_rate_in_the_runs_own_pipeline_is_told(runs: Runs) -> None:
    file = runs.path / "pipeline.yaml"
    file.write_text("# a comment is no change\n" + file.read_text().replace("lr: 0.05", "lr: 0.5"))
    ended = runs.resume()
    assert ended.code == 2 and "pipeline.phases[2].train.lr: 0.05 then, 0.5 now" in ended.output, ended
    assert runs.resume(options=("--inexact",)).code == 0
    (noted,) = logs.read(runs.path / "inexact.jsonl")
    assert noted["changed"] == ["pipeline.phases[2].train.lr: 0.05 then, 0.5 now"]


def test_a_lock_that_was_edited_to_match_is_told(runs: Runs) -> None:
    file, lock = runs.path / "pipeline.yaml", json.loads((runs.path / "lock.json").read_text())
    file.write_text(file.read_text().replace("lr: 0.05", "lr: 0.5"))
    lock["pipeline"]["phases"][2]["train"]["lr"] = 0.5
    (runs.path / "lock.json").write_text(json.dumps(lock))
    ended = runs.resume()
    assert ended.code == 2 and "lock.json: it was edited since the checkpoint was written" in ended.output, (
        ended
    )


def forge(runs: Runs, change: Any) -> None:
    """Edit the state of the last checkpoint, and all that would tell."""
    folder = runs.path / f"checkpoints/{last(runs)[0]:08d}"
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = fingerprint(folder / "state.json")
    manifest["checksum"] = checksum_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "rows/../../outside"])
def test_a_log_that_is_named_outside_the_run_is_refused(runs: Runs, name: str) -> None:
    (runs.root / "outside").write_text("mine\n" * 9)
    size = {"size": 3, "sha256": "", "every": 4096, "marks": []}
    forge(runs, lambda state: state["logs"].update({name: size}))
    for options in ((), ("--inexact",)):
        ended = runs.resume(options=options)
        assert ended.code == 2 and f"names '{name}', which is no file in its folder" in ended.output, ended
    assert (runs.root / "outside").read_text() == "mine\n" * 9


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", ".logs", "rows", ".running", "lock.json"])
def test_a_link_in_a_run_leads_nowhere(runs: Runs, name: str) -> None:
    outside = runs.root / "outside"
    (runs.path / name).rename(outside)
    (runs.path / name).symlink_to(outside)
    before = sorted((p, p.is_file() and p.read_bytes()) for p in [outside, *outside.rglob("*")])
    ended = runs.resume()
    assert ended.code == 2, ended
    assert any(f"{runs.path / name}: is {what}" in ended.output for what in ("a link", "no file")), ended
    assert sorted((p, p.is_file() and p.read_bytes()) for p in [outside, *outside.rglob("*")]) == before


def test_an_export_leaves_its_neighbours_alone(runs: Runs) -> None:
    for name in (".tmp-out", ".tmp-out.jsonl"):
        (runs.root / name).mkdir()
        (runs.root / name / "mine").write_text("mine")
    assert inspected(runs, "export", runs.path, "--trust", "--to", runs.root / "out").code == 0
    assert inspected(runs, "export", runs.path, "--samples", runs.root / "out.jsonl").code == 0
    assert all((runs.root / name / "mine").exists() for name in (".tmp-out", ".tmp-out.jsonl"))
    assert (runs.root / "out/config.json").exists() and (runs.root / "out.jsonl").exists()


# -- moved, or taken ------------------------------------------------------------------------------------


def paused(runs: Runs, gate: Path, *interfere: Interference, at: int = 2, resume: bool = True) -> Any:
    waits = ("wait_for", {"file": str(gate), "function": STEP, "at": at})
    process = runs.begin(waits, *interfere, resume=resume)
    wait_until(gate.with_name(gate.name + ".here"))
    return process


def test_a_run_that_is_moved_and_a_new_one_of_its_name_leave_each_other_alone(
    server: Server, tmp_path: Path, whole: dict[str, Any]
) -> None:
    runs = Runs(HERE / "phases.yaml", tmp_path / "root", server)
    first = paused(runs, tmp_path / "gate", at=6, resume=False)
    moved = runs.path.rename(tmp_path / "run")
    assert runs.start().code == 0
    (tmp_path / "gate").touch()
    ended = first.wait()
    assert ended.code == 1 and "the run's folder was moved or deleted while it ran" in ended.output, ended
    assert differences(whole, outcome(runs.path)) == []
    assert inspected(runs, "run", "--plain", "--resume", moved).code == 0
    assert differences(whole, outcome(moved)) == []


def test_a_run_that_is_moved_while_a_checkpoint_is_written(
    server: Server, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """The writer finds another run where its own was, and leaves it alone."""
    runs, gate = Runs(HERE / "phases.yaml", tmp_path / "root", server), tmp_path / "gate"
    writing = "rlalign.records.checkpoint:checksum_of"
    first = runs.begin(("wait_for", {"file": str(gate), "function": writing, "at": 2}))
    wait_until(gate.with_name("gate.here"))
    moved = runs.path.rename(tmp_path / "run")
    assert runs.start().code == 0
    gate.touch()
    ended = first.wait()
    assert ended.code == 1 and "the run's folder was moved or deleted while it ran" in ended.output, ended
    assert differences(whole, outcome(runs.path)) == []
    assert checkpoint.find(moved / "checkpoints") == [1]
    assert inspected(runs, "run", "--plain", "--resume", moved).code == 0
    assert differences(whole, outcome(moved)) == []


def test_a_run_whose_folder_is_gone_stops(runs: Runs, tmp_path: Path) -> None:
    first = paused(runs, tmp_path / "gate")
    shutil.rmtree(runs.path)
    (tmp_path / "gate").touch()
    ended = first.wait()
    assert ended.code == 1 and "moved or deleted" in ended.output and not runs.path.exists(), ended


def test_two_writers_that_both_have_the_lock_do_not_mix(
    runs: Runs, whole: dict[str, Any], tmp_path: Path
) -> None:
    first = paused(runs, tmp_path / "one", NO_LOCKS)
    second = paused(runs, tmp_path / "two", NO_LOCKS)
    (tmp_path / "one").touch()
    ended = first.wait()
    assert ended.code == 1 and f"process {second.pid} writes this run now" in ended.output, ended
    (tmp_path / "two").touch()
    ended = second.wait()
    assert ended.code == 0, ended
    assert differences(whole, outcome(runs.path)) == []


# -- whatever happens to a folder -----------------------------------------------------------------------

COMMANDS: dict[str, list[str]] = {
    "resume": ["run", "--plain", "--resume", "{run}"],
    "previous": ["run", "--plain", "--resume", "{run}", "--previous"],
    "inexact": ["run", "--plain", "--resume", "{run}", "--inexact"],
    "eval": ["eval", "{run}", "--trust", "--json"],
    "sample": ["sample", "{run}", "--json"],
    "export": ["export", "{run}", "--trust", "--to", "{root}/out"],
    "responses": ["export", "{run}", "--samples", "{root}/out.jsonl"],
}
CONTENTS = [
    b"",
    b"[]",
    b"{}",
    b"null",
    b"1e999",
    b"[" * 100_000,
    b"\xff\xfe\0\1",
    b"9" * 10_000,
    b"\0" * 64,
    b"x: y\n",
]
VALUES = [None, -1, 10**30, 1e300, "../../outside/file", "/tmp/outside", "", [], {}, [[]], True, "\0"]
BARE = re.compile(r"error: \w+: .*\(\w+\.py:\d+\); --debug|Traceback")


def harm(run: Path, outside: Path, chance: random.Random) -> str:
    """Do something to one file or folder of a run; says what."""
    path = chance.choice(sorted(run.rglob("*")))
    kinds = ["delete", "content", "link", "pipe", "device"]
    kinds += [] if path.is_dir() else ["flip", "cut", "grow", "folder", "second name", "json"]
    kind, data = chance.choice(kinds), b"" if path.is_dir() else path.read_bytes()
    if kind in ("link", "second name"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, outside / path.name)
    if kind == "json":
        tree, places = json.loads(data) if path.suffix == ".json" else {}, []

        def walk(node: Any) -> None:
            for key in (
                range(len(node)) if isinstance(node, list) else list(node) if isinstance(node, dict) else ()
            ):
                places.append((node, key))
                walk(node[key])

        walk(tree)
        if places:
            node, key = chance.choice(places)
            node[key] = chance.choice(VALUES)
            kind += f" {key} {node[key]!r}"
            if "checksum" in tree:
                tree["checksum"] = checksum_of(tree)
            data = json.dumps(tree).encode()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == "link":
        path.symlink_to(outside / path.name)
    elif kind == "second name":
        os.link(outside / path.name, path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "delete":
        at = chance.randrange(len(data)) if data else 0
        changed = {
            "content": chance.choice(CONTENTS),
            "flip": data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
            if data
            else b"x",
            "cut": data[:at],
            "grow": data + chance.choice([b"x", b"\n", b"{}\n", b"\xff" * 30]),
        }
        path.write_bytes(changed.get(kind, data))
    return f"{path.relative_to(run)}: {kind}"


@pytest.mark.parametrize("count", [4, pytest.param(300, marks=pytest.mark.slow)])
def test_whatever_happens_to_a_folder_is_told_or_changes_nothing(
    broken: Runs, whole: dict[str, Any], tmp_path: Path, count: int
) -> None:
    for seed in range(count):
        chance = random.Random(seed)
        runs = Runs(broken.pipeline, tmp_path / str(seed), broken.server)
        shutil.copytree(broken.path, runs.path)
        outside = runs.root / "outside"
        outside.mkdir()
        (outside / "file").write_text("mine\n" * 99)
        said = harm(runs.path, outside, chance)
        name = chance.choice([*["resume"] * 4, *COMMANDS])
        before = {path: path.is_file() and path.read_bytes() for path in outside.rglob("*")}
        ended = inspected(runs, *(part.format(run=runs.path, root=runs.root) for part in COMMANDS[name]))
        told = f"{seed}: {said}; {name}: {ended}"
        assert ended.code in (0, 1, 2) and not BARE.search(ended.output), told
        assert ended.code == 0 or "error: " in ended.output, told
        assert {path: path.is_file() and path.read_bytes() for path in outside.rglob("*")} == before, told
        if ended.code == 0 and name in ("resume", "previous"):
            for index in checkpoint.find(runs.path / "checkpoints"):  # an older one, which nobody needed
                if checkpoint.damage(folder := runs.path / f"checkpoints/{index:08d}"):
                    shutil.rmtree(folder)
            mine, first = runs.path / "pipeline.yaml", broken.path / "pipeline.yaml"
            if yaml.safe_load(mine.read_text()) == yaml.safe_load(first.read_text()):
                shutil.copy(first, mine)  # white space says nothing
            assert differences(whole, outcome(runs.path), common=True) == [], told
        shutil.rmtree(runs.root)
