"""Run folders appear whole, have one writer, and say what they were made with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlalign.errors import ConfigError, RLAlignError
from rlalign.records import environment
from rlalign.records.rundir import RunDir, latest, write_atomic


def create(root: Path, name: str | None = None, stem: str = "ppo") -> RunDir:
    return RunDir.create(root, stem, name, pipeline="seed: 1\n", lock={"seed": 1})


def test_a_run_is_created_whole(tmp_path):
    with create(tmp_path / "runs") as run:
        assert run.path == tmp_path / "runs/ppo" and run.name == "ppo"
        assert run.pipeline.read_text() == "seed: 1\n"
        assert json.loads(run.lock.read_text()) == {"seed": 1}
        assert os.listdir(tmp_path / "runs") == ["ppo"]
        assert Path(run) == run.path
        assert run.checkpoints == run.path / "checkpoints"


def test_names_count_on_and_latest_is_the_last(tmp_path):
    names = [create(tmp_path).name for _ in range(3)]
    assert names == ["ppo", "ppo-2", "ppo-3"]
    create(tmp_path, "ppo-best")
    create(tmp_path, stem="pp")
    assert latest(tmp_path, "ppo") == tmp_path / "ppo-3"
    # A gap is not filled: the last run keeps the highest number.
    (tmp_path / "ppo").rename(tmp_path / "gone")
    assert create(tmp_path).name == "ppo-4"
    assert latest(tmp_path, "dpo") is None
    assert latest(tmp_path / "nowhere", "ppo") is None


def test_a_named_run_that_exists_is_refused_with_the_remedy(tmp_path):
    create(tmp_path, "mine").close()
    with pytest.raises(ConfigError, match=r"this run exists.*--resume .*mine"):
        create(tmp_path, "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: exists and is no run"):
        create(tmp_path, "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "mine"]


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/tmp/x"])
def test_a_name_that_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="run name"):
        create(tmp_path, name)


def test_a_place_that_cannot_hold_runs_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no run can be created here: Not a directory"):
        create(tmp_path / "file")


def test_nothing_is_left_when_creation_fails(tmp_path):
    with pytest.raises(TypeError):
        RunDir.create(tmp_path, "ppo", pipeline="", lock={"seed": object()})
    assert os.listdir(tmp_path) == []


def test_what_is_no_run_is_refused_and_runs_are_named(tmp_path):
    create(tmp_path, "mine").close()
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"other: is no run of rlalign.*pipeline.yaml. Runs in .*: mine\."):
        RunDir.open(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"mein: there is no such run. Runs in .*: mine\."):
        RunDir.open(tmp_path / "mein")


def test_a_run_has_one_writer(tmp_path):
    run = create(tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"process {os.getpid()} is writing this run"):
            RunDir.open(run.path)
    assert RunDir.open(run.path, exclusive=False).pipeline.exists()
    run.close()
    with RunDir.open(run.path) as again:
        assert again.path == run.path


def test_a_killed_writer_holds_nothing(tmp_path):
    create(tmp_path, "mine").close()
    hold = "import sys; from rlalign.records.rundir import RunDir; run = RunDir.open(sys.argv[1]); print(); input()"
    command = [sys.executable, "-c", hold, tmp_path / "mine"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"\n"
        with pytest.raises(ConfigError, match=f"process {writer.pid} "):
            RunDir.open(tmp_path / "mine")
        writer.kill()
    RunDir.open(tmp_path / "mine").close()


def test_a_run_is_ones_own_until_it_is_moved_or_taken(tmp_path):
    run = create(tmp_path)
    run.require_mine()
    moved = run.path.rename(tmp_path / "moved")
    with pytest.raises(RLAlignError, match=r"ppo: the run's folder was moved or deleted"):
        run.require_mine()
    other = create(tmp_path)
    assert other.path == run.path
    with pytest.raises(RLAlignError, match="moved or deleted"):
        run.require_mine()
    other.require_mine()
    other.close()
    other.path.rename(tmp_path / "other")
    moved.rename(run.path)
    run.require_mine()
    (run.path / ".running").write_text("12 elsewhere 0123456789abcdef\n")
    with pytest.raises(RLAlignError, match=r"process 12 on elsewhere writes this run now"):
        run.require_mine()
    (run.path / ".running").write_text("\x1b[2J")
    with pytest.raises(RLAlignError, match=r"another process writes this run now"):
        run.require_mine()
    RunDir.open(tmp_path / "other", exclusive=False).require_mine()


def test_write_atomic_replaces(tmp_path):
    for text in ("old", "neu, größer"):
        write_atomic(tmp_path / "x", text)
    assert (tmp_path / "x").read_text(encoding="utf-8") == "neu, größer"
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "x", "\ud800")
    assert os.listdir(tmp_path) == ["x"]


# The lock


def test_differences_are_lines_for_a_person():
    old = {"packages": {"torch": "2.12.0", "rich": "15"}, "seed": 1, "models": {"policy": "a" * 64}}
    new = {"packages": {"torch": "2.13.0"}, "seed": 1, "models": {"policy": "b" * 64, "value": "c" * 64}}
    assert environment.differences(old, old) == []
    assert environment.differences(old, new) == [
        "packages.torch: 2.12.0 then, 2.13.0 now",
        "packages.rich: 15 then, nothing now",
        "models.policy: aaaaaaaaaaaa… then, bbbbbbbbbbbb… now",
        "models.value: nothing then, cccccccccccc… now",
    ]


def test_a_difference_is_refused_with_the_remedy():
    environment.refuse_changed([], "runs/ppo")
    with pytest.raises(ConfigError, match=r"(?s)threads: 1 then, 2 now.*--resume runs/ppo --inexact"):
        environment.refuse_changed(["threads: 1 then, 2 now"], "runs/ppo")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, editable: bool) -> Path:
    """A plugin as pip leaves it: the list of files of an editable one names no source."""
    source = folder / ("src" if editable else "site") / "rlalign_plugin_odd"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("X = 1\n")
    (source / "toy.safetensors").write_bytes(b"weights")
    info = folder / "site" / "rlalign_plugin_odd-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rlalign-plugin-odd\nVersion: 0.3\n"
        "Requires-Dist: PyYAML>=6\nRequires-Dist: pytest; extra == 'test'\n"
        "Requires-Dist: not-here; os_name == 'nt'\n"
    )
    (info / "entry_points.txt").write_text("[rlalign]\nodd = rlalign_plugin_odd:Odd\n")
    for place in {folder / "site", source.parent}:
        monkeypatch.syspath_prepend(str(place))
    return source


@pytest.mark.parametrize("editable", [True, False])
def test_a_plugins_code_is_hashed_where_python_finds_it(tmp_path, monkeypatch, editable):
    source = install(tmp_path, monkeypatch, editable=editable)
    first = environment.code_hash("rlalign-plugin-odd")
    assert first is not None and first == environment.code_hash("rlalign-plugin-odd")
    (source / "__pycache__").mkdir()
    (source / "__pycache__/x.pyc").write_bytes(b"")
    (source / "notes.txt").write_text("no code")
    assert environment.code_hash("rlalign-plugin-odd") == first
    for changed in ("__init__.py", "toy.safetensors", "new.py"):
        with open(source / changed, "a") as file:
            file.write("#")
        assert environment.code_hash("rlalign-plugin-odd") != first
        first = environment.code_hash("rlalign-plugin-odd")
    assert environment.code_hash("nothing-of-this-name") is None


def test_a_lock_is_plain_json_and_holds_what_was_given(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, editable=True)
    made = environment.make_lock(
        seed=3,
        deterministic=False,
        distributions=["rlalign-plugin-odd"],
        data={"train": "d"},
        models={"policy": "m"},
        device="cpu",
        dtype="float32",
        threads=1,
        budgets={"align": 4096},
    )
    assert json.loads(json.dumps(made)) == made
    assert made["plugins"]["rlalign-plugin-odd"]["version"] == "0.3"
    assert made["plugins"]["rlalign"]["code"]
    assert (
        "pyyaml" in made["packages"]
        and "pytest" not in made["packages"]
        and "not-here" not in made["packages"]
    )
    assert made["seed"] == 3 and made["budgets"] == {"align": 4096} and made["attention"] is None
