"""Trackers get all of a run, in a process of their own; what goes wrong there ends, slows and changes no run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import rlalign
from rlalign.errors import shown
from rlalign.running import loop
from rlalign.testing import registry
from rlalign.testing.bench import Silence, stop_early

SECRET = "wk-0123456789abcdef0123456789"
TRACKER = '''
import json, os, time
from pathlib import Path
from rlalign import Tracker

class Notebook(Tracker):
    """Writes all that it is told into a file."""
    class Config(Tracker.Config):
        fault: str = ""
        wait: float = 0.0
    keys = ("NOTEBOOK_KEY",)

    def begin(self, run):
        self.file = Path(run.folder).parent / "notebook.jsonl"
        print("printed by the library")
        if self.config.fault == "begin":
            raise OSError("no way through with " + os.environ["NOTEBOOK_KEY"])
        self.write("begin", run.id, run.name, run.tick, dict(run.pipeline))

    def log(self, figures, tick):
        if self.config.fault == "log":
            raise OSError("no way through")
        if self.config.fault == "exit":
            os._exit(7)
        if self.config.fault == "hang":
            time.sleep(600)
        time.sleep(self.config.wait)
        self.write("log", tick, figures)

    def show(self, columns, rows, tick):
        self.write("show", tick, columns, rows)

    def end(self, error):
        self.write("end", error)

    def write(self, *said):
        with self.file.open("a") as file:
            file.write(json.dumps([os.getpid(), *said]) + "\\n")
'''


class Told(Silence):
    """A display that keeps its notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def pipeline(folder: Path, **options: Any) -> Any:
    (folder / "notebook.py").write_text(TRACKER)
    said = {
        "task": "rlalign.testing:Numbers",
        "policy": {"rlalign.testing:Logits": {}},
        "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
        "algorithm": "rlalign.testing:PolicyGradient",
        "generation": {"samples": 2, "max_new_tokens": 5},
        "train": {"iterations": 4, "prompts": 4, "lr": 0.1},
        "evaluate": {"every": 2, "examples": 4},
        "observers": [{"notebook:Notebook": options}],
    }
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(said))
    return rlalign.load(file).settings


def run(folder: Path, **options: Any) -> tuple[list[list[Any]], Told]:
    told = Told()
    loop.start(pipeline(folder, **options), root=folder / "runs", name="one", display=told).run()
    return written(folder), told


def written(folder: Path) -> list[list[Any]]:
    file = folder / "runs/notebook.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/one" / name).read_text().splitlines()]


def test_it_is_told_everything_in_a_process_of_its_own(tmp_path, capfd):
    said, told = run(tmp_path, name="mine", samples=3)
    assert not told.notes and "printed by the library" not in capfd.readouterr().out
    assert {row[0] for row in said} != {os.getpid()} and len({row[0] for row in said}) == 1
    assert [row[1] for row in said] == [
        "begin",
        *["log", "show"],
        *["log"] * 3,
        "show",
        *["log"] * 3,
        "show",
        "end",
    ]
    (_, _, run_id, name, tick, resolved), end = said[0], said[-1]
    assert (len(run_id), name, tick, resolved["train"]["iterations"]) == (16, "mine", 0, 4)
    assert end[2] is None
    logged = [(row[2], row[3]) for row in said if row[1] == "log"]
    for (tick, figures), row in zip(logged, rows(tmp_path, "metrics.jsonl"), strict=True):
        known = {key: value for key, value in figures.items() if not key.startswith("time/")}
        assert tick == row["iteration"] and known and known.items() <= row.items()
    _, _, tick, columns, table = [row for row in said if row[1] == "show"][-1]
    assert tick == 4 and columns == ["prompt", "response", "scores/sum"]
    last = [row for row in rows(tmp_path, "samples.jsonl") if row["iteration"] == 4][:3]
    assert [row[2] for row in table] == [row["scores"]["sum"] for row in last]
    assert [row[1] for row in table] == [row["response"] for row in last]


def test_a_resumed_run_goes_on_as_the_same(tmp_path):
    settings = pipeline(tmp_path)
    stop_early(loop.start(settings, root=tmp_path / "runs", name="one", display=Told()))
    loop.resume(tmp_path / "runs/one", registry({}), display=Told()).run()
    said = written(tmp_path)
    first, again = (row for row in said if row[1] == "begin")
    assert first[2] == again[2] and first[4] == 0 and again[4] > 0
    assert [row[2] is None for row in said if row[1] == "end"] == [False, True]


@pytest.mark.parametrize(
    "fault, note",
    [
        ("begin", "could not begin: OSError: no way through with $NOTEBOOK_KEY (notebook.py"),
        ("log", "`log`: OSError: no way through"),
        ("exit", "its process ended with 7"),
        ("hang", "was not done 1 s after the run; what it had not sent is lost"),
    ],
)
def test_what_fails_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch, fault, note):
    monkeypatch.setenv("NOTEBOOK_KEY", SECRET)
    began = time.monotonic()
    _, told = run(tmp_path, fault=fault, patience=1.0 if fault == "hang" else 60.0)
    (text,) = told.notes
    assert note in shown(text)
    assert (tmp_path / "runs/one/model").is_dir()
    assert time.monotonic() - began < 60
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_a_slow_one_slows_no_iteration(tmp_path):
    """Ten calls of half a second each; none is waited for before the end."""
    said, _ = run(tmp_path, wait=0.5)
    took = [row["time/iteration"] for row in rows(tmp_path, "metrics.jsonl") if "time/iteration" in row]
    assert took and min(took) < 0.5
    assert said[-1][1] == "end"


def test_figures_are_the_same_with_and_without(tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    run(tmp_path / "with")
    said = json.loads((tmp_path / "with/pipeline.yaml").read_text())
    del said["observers"]
    file = tmp_path / "without/pipeline.yaml"
    file.write_text(json.dumps(said))
    loop.start(rlalign.load(file).settings, root=tmp_path / "without/runs", name="one", display=Told()).run()
    models = [
        (tmp_path / name / "runs/one/model/model.safetensors").read_bytes() for name in ("with", "without")
    ]
    assert models[0] == models[1]


def test_a_library_that_is_missing_is_said_before_anything_runs(tmp_path):
    (tmp_path / "absent.py").write_text(
        "from rlalign import Tracker\n\n\nclass Absent(Tracker):\n    requires = 'never_made'\n"
    )
    settings = pipeline(tmp_path)
    file = tmp_path / "pipeline.yaml"
    file.write_text(file.read_text().replace("notebook:Notebook", "absent:Absent"))
    settings = rlalign.load(file).settings
    with pytest.raises(rlalign.ConfigError, match="needs never_made, which is not installed"):
        loop.start(settings, root=tmp_path / "runs", name="one", display=Told()).run()
