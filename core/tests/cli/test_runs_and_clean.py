"""`rlalign runs` tells how each run stands and never breaks; `rlalign clean` leaves a model that can be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import rlalign
from rlalign.cli.commands import program
from rlalign.errors import ConfigError
from rlalign.records import cleaning
from rlalign.records.rundir import RunDir
from rlalign.running import loop
from rlalign.testing import registry
from rlalign.testing.bench import Silence, stop_early

PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}, {"kl": {"coef": 0.5}}],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 4, "lr": 0.1, "keep_responses": True},
    "evaluate": {"every": 2, "examples": 4, "generation": {"temperature": 1.0}},
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, list(arguments), prog_name="rlalign")


def ran(name: str, **changes: Any) -> Path:
    """A finished run."""
    rlalign.run({**PIPELINE, **changes}, name=name, display=False)
    return Path("runs") / name


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, and one that was stopped in the second of two phases."""
    root = tmp_path_factory.mktemp("originals")
    rlalign.run(PIPELINE, root=root, name="done", display=False)
    phases = [{"name": "warm"}, {"name": "align", "train": {"iterations": 5}}]
    pipeline = rlalign.load({**PIPELINE, "phases": phases}).settings
    session = loop.start(pipeline, registry({}), root=root, name="half", display=Silence())
    stop_early(session)
    for _ in range(4):
        stop_early(loop.resume(root / "half", registry({}), display=Silence()))
    return root


@pytest.fixture(autouse=True)
def runs(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(originals, tmp_path / "runs")
    return tmp_path / "runs"


def listed(*arguments: str) -> dict[str, dict[str, Any]]:
    result = call("runs", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)["runs"]}


def disk(folder: Path) -> int:
    """Bytes by `du`, which counts hard links once; without the folders themselves."""
    files = subprocess.check_output(["find", folder, "-type", "f", "-print0"])
    told = subprocess.run(
        ["du", "-cB1", "--files0-from=-"], input=files, capture_output=True, check=True
    ).stdout
    return int(told.splitlines()[-1].split()[0])


# -- runs -------------------------------------------------------------------------------------------


def test_how_runs_stand(runs: Path) -> None:
    with RunDir.open(runs / "half"):
        assert listed()["half"]["state"] == "running"
    found = listed()
    done, half = found["done"], found["half"]
    assert done["state"] == "finished" and "iteration" not in done
    assert (half["state"], half["phase"], half["iteration"], half["iterations"]) == ("stopped", "align", 2, 5)
    last = rlalign.Result("runs/done").last["eval/total"]
    assert (done["figure"], done["value"]) == ("eval/total", last)
    for name, row in found.items():
        assert row["bytes"] == disk(runs / name)
        assert row["checkpoints"] == disk(runs / name / "checkpoints")
        assert 0 <= row["age"] < 3600
    table = call("runs").stdout
    assert "stopped at align, 2 of 5" in table and "finished" in table and "2 in all" in table


def test_an_age_is_that_of_the_last_file_written(runs: Path) -> None:
    for path in runs.rglob("*"):
        os.utime(path, (0, 0))
    os.utime(runs / "half/metrics.jsonl", (10**9, 10**9))
    RunDir.open(runs / "half").close()
    found = listed()
    assert found["done"]["age"] - found["half"]["age"] == pytest.approx(10**9, abs=1)
    assert list(found) == ["half", "done"]


def test_links_between_runs_are_counted_once(runs: Path) -> None:
    one = json.loads(call("runs", "--json").stdout)
    subprocess.run(["cp", "-al", runs / "done", runs / "copy"], check=True)
    two = json.loads(call("runs", "--json").stdout)
    assert two["bytes"] == one["bytes"] == disk(runs)
    copied = {row["name"]: row["bytes"] for row in two["runs"]}
    assert copied["copy"] == copied["done"]


def test_one_run_by_itself(runs: Path) -> None:
    assert list(listed("runs/half")) == ["half"]


DAMAGES: dict[str, Any] = {
    "lock.json": lambda run: (run / "lock.json").write_text("[1"),
    "pipeline.yaml": lambda run: (run / "pipeline.yaml").unlink(),
    "metrics.jsonl": lambda run: (run / "metrics.jsonl").write_text('{"reward/total": "x"}\n'),
    "metrics.jsonl ": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"),
    "metrics.jsonl  ": lambda run: ((run / "metrics.jsonl").unlink(), os.mkfifo(run / "metrics.jsonl")),
    "metrics.jsonl   ": lambda run: (
        (run / "metrics.jsonl").unlink(),
        (run / "metrics.jsonl").symlink_to("/etc/passwd"),
    ),
    "state.json": lambda run: (max((run / "checkpoints").iterdir()) / "state.json").write_text('{"loop": 1}'),
    "state.json ": lambda run: (max((run / "checkpoints").iterdir()) / "state.json").unlink(),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_run_is_one_word(runs: Path, what: str) -> None:
    DAMAGES[what](runs / "half")
    found = listed()
    assert found["half"]["state"] == "damaged" and found["done"]["state"] == "finished"
    (line,) = [line for line in call("runs").stdout.splitlines() if line.startswith("half")]
    assert "damaged: " in line and what.strip() in line


def test_strange_company(runs: Path, tmp_path: Path) -> None:
    (runs / "notes.txt").write_text("mine")
    (runs / "foreign/deep").mkdir(parents=True)
    (runs / "foreign/deep/large").write_bytes(b"x" * 10**6)
    (runs / "there").symlink_to(tmp_path / "runs/done")
    (runs / ".hidden").mkdir()
    (runs / "two\nlines\x1b[31m").mkdir()
    (runs / "done/elsewhere").symlink_to(runs / "foreign")
    (runs / "half/checkpoints").rename(tmp_path / "moved")
    (runs / "half/checkpoints").symlink_to(tmp_path / "moved")
    (runs / "half/.running").unlink()
    os.mkfifo(runs / "half/.running")
    found = listed()
    states = {name: row["state"] for name, row in found.items()}
    assert states == {
        "done": "finished",
        "half": "stopped",
        "foreign": "foreign",
        "there": "link",
        "two\nlines\x1b[31m": "foreign",
    }
    assert found["half"]["checkpoints"] == 0 and "iterations" not in found["half"]
    assert found["done"]["bytes"] == disk(runs / "done") < 10**6
    table = call("runs").stdout
    assert "\x1b" not in table and len(table.splitlines()) == 7


def test_a_run_that_has_just_begun(runs: Path) -> None:
    RunDir.create(runs, "new", pipeline="seed: 1\n", lock={"seed": 1}).close()
    assert listed()["new"]["state"] == "stopped"
    assert "stopped at 0" in call("runs").stdout


def test_no_folder_and_no_runs(tmp_path: Path) -> None:
    result = call("runs", "nowhere")
    assert result.exit_code == 2 and "nowhere: there is no such folder" in result.stderr
    (tmp_path / "empty").mkdir()
    assert call("runs", "empty").stdout == "empty: holds no runs\n"


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys\nfrom rlalign.cli.commands import program\nfrom click.testing import CliRunner\n"
        "assert CliRunner().invoke(program, ['runs']).exit_code == 0\n"
        "print(*{'torch', 'transformers', 'numpy', 'yaml', 'tensorboardX'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_asking_stops_nobody_who_would_write(runs: Path) -> None:
    """A run that begins while another process asks whether it is written waits for the answer."""
    import fcntl
    import threading

    asked = os.open(runs / "half/.running", os.O_RDONLY)
    fcntl.flock(asked, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [asked]).start()
    RunDir.open(runs / "half").close()


# -- clean ------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_what_is_kept_and_what_goes(runs: Path) -> None:
    run = runs / "done"
    for name in ("remembered", "columns/one", "bad-batch", "mine"):
        (run / name).mkdir(parents=True)
        (run / name / "file").write_bytes(b"x" * 5000)
    (run / "notes.md").write_text("mine")
    before, size = content(run), disk(run)
    told = call("clean", "done", "--dry-run")
    assert told.exit_code == 0 and content(run) == before
    assert told.stdout.startswith("runs/done: would free ") and "checkpoints/ " in told.stdout
    result = call("clean", "runs/done")
    assert result.exit_code == 0 and result.stdout.startswith("runs/done: freed ")
    gone = ("checkpoints/", "remembered/", "columns/", "bad-batch/")
    kept = {name: data for name, data in before.items() if not name.startswith(gone)}
    after = content(run)
    assert after | {".running": b""} == kept | {".running": b""}
    assert any(name.startswith("rows/") for name in after) and "mine/file" in after and "notes.md" in after
    assert {"model/config.json", "metrics.jsonl", "samples.jsonl", "pipeline.yaml", "lock.json"} <= set(after)
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == [".logs", ".running"]
    assert "nothing to delete" in call("clean", "done").stdout
    assert size > disk(run) == listed()["done"]["bytes"] and listed()["done"]["checkpoints"] == 0
    assert "rows/" in call("clean", "done", "--rows").stdout and not (run / "rows").exists()


def test_what_is_told_is_what_is_freed(runs: Path) -> None:
    """Files with several names count where their last one goes: not what another folder still holds."""
    run = runs / "done"
    before = disk(runs)
    os.link(run / "model/model.safetensors", runs / "shared")
    weights = sorted(run.glob("checkpoints/*/models/policy.safetensors"))[-1]
    os.link(weights, runs / "weights")
    freed = rlalign.Result(run).clean(dry_run=True)
    assert rlalign.Result(run).clean() == freed and list(freed) == ["checkpoints"]
    (runs / "shared").unlink()
    assert before - disk(runs) == freed["checkpoints"]


def test_a_run_that_is_not_finished_is_refused_and_so_are_those_beside_it(runs: Path) -> None:
    before = content(runs)
    result = call("clean", "done", "half")
    assert result.exit_code == 2 and "runs/half: this run is not finished" in result.stderr
    assert "`rlalign run --resume runs/half`" in result.stderr
    assert content(runs) == before


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_run_that_is_written_is_refused(runs: Path, options: list[str]) -> None:
    with RunDir.open(runs / "done"):
        result = call("clean", "done", *options)
    assert result.exit_code == 2 and "is writing this run" in result.stderr
    assert (runs / "done/checkpoints").is_dir()


@pytest.mark.parametrize("left", ["nothing", "a card"])
def test_without_a_model_the_checkpoints_stay(runs: Path, left: str) -> None:
    shutil.rmtree(runs / "done/model")
    (runs / "done/model").mkdir()
    if left == "a card":
        (runs / "done/model/README.md").write_text("# done")
    result = call("clean", "done")
    assert result.exit_code == 2 and "holds no model" in result.stderr
    assert (runs / "done/checkpoints").is_dir()


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/outside", "remembered"])
def test_a_link_leads_nowhere(runs: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    if (runs / "done" / name).exists():
        shutil.rmtree(runs / "done" / name)
    (runs / "done" / name).symlink_to(outside)
    result = call("clean", "done")
    assert result.exit_code == 2 and "is a link" in result.stderr
    assert (outside / "mine").read_text() == "mine"


def test_what_is_no_run_is_refused(runs: Path) -> None:
    (runs / "foreign/checkpoints").mkdir(parents=True)
    result = call("clean", "runs/foreign")
    assert result.exit_code == 2 and "is no run of rlalign" in result.stderr
    assert (runs / "foreign/checkpoints").is_dir()
    assert call("clean", "nosuch").exit_code == 2 and call("clean").exit_code == 2


KILLED = """
import os, shutil, signal, sys
from rlalign.records import cleaning

def rmtree(path, *_, **__):
    files = sorted(path.rglob("*.safetensors"))
    os.unlink(files[0])
    os.kill(os.getpid(), signal.SIGKILL)

cleaning.shutil.rmtree = rmtree
cleaning.clean(sys.argv[1])
"""


def test_killed_half_way_it_can_be_cleaned_again(runs: Path) -> None:
    run = runs / "done"
    killed = subprocess.run([sys.executable, "-c", KILLED, run], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".tmp-checkpoints-") for path in run.iterdir())
    assert not (run / "checkpoints").exists()
    assert listed()["done"]["state"] == "finished"
    assert call("clean", "done").exit_code == 0
    assert not any(path.name.startswith(".tmp-") for path in run.iterdir())


# -- afterwards -------------------------------------------------------------------------------------


@pytest.fixture
def cleaned(runs: Path) -> Path:
    cleaning.clean(runs / "done")
    return runs / "done"


def test_going_on_with_a_cleaned_run_leaves_its_model(cleaned: Path) -> None:
    before = content(cleaned / "model")
    for options in ([], ["--inexact"]):
        result = call("run", "--resume", "runs/done", "--plain", *options)
        assert result.exit_code == 0, result.output
        assert "this run is finished; its model is in runs/done/model" in result.output
        assert content(cleaned / "model") == before
    result = call("run", "--resume", "runs/done", "--previous")
    assert result.exit_code == 2 and "its checkpoints are deleted" in result.stderr
    assert content(cleaned / "model") == before
    session = loop.resume(cleaned, registry({}), display=Silence())
    last = rlalign.Result(cleaned).last["eval/total"]
    assert session.run().metrics["eval/total"] == last


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "done"],
        ["eval", "done", "--at", "best"],
        ["sample", "done", "--new"],
        ["sample", "done", "--at", "best"],
        ["export", "done", "--to", "out"],
        ["export", "done", "--to", "out", "--at", "3"],
    ],
)
def test_other_commands_say_what_is_left(cleaned: Path, command: list[str]) -> None:
    result = call(*command)
    assert result.exit_code == 2, result.output
    assert (
        "this run is finished and its checkpoints are deleted; its model is in runs/done/model"
        in result.stderr
    )
    assert "rlalign eval runs/done/model --task" in result.stderr and not Path("out").exists()


def test_what_needs_no_checkpoint_still_works(cleaned: Path) -> None:
    assert call("sample", "done").exit_code == 0
    assert call("export", "done", "--samples", "kept.jsonl").exit_code == 0
    assert Path("kept.jsonl").read_text().count("\n") == 12
    how = ["--task", "rlalign.testing:Numbers", "--policy", "rlalign.testing:Logits", "--trust"]
    result = call("eval", "runs/done/model", *how, "--reward", "rlalign.testing:TokenSum", "--examples", "4")
    assert result.exit_code == 0, result.output
    result = rlalign.Result(cleaned)
    assert result.finished and result.evaluations and result.metrics
    with pytest.raises(ConfigError, match="its checkpoints are deleted"):
        rlalign.open(cleaned)


def test_a_damaged_pipeline_does_not_matter(runs: Path) -> None:
    (runs / "done/pipeline.yaml").write_text(yaml.dump({"nonsense": 1}))
    assert call("clean", "done").exit_code == 0
