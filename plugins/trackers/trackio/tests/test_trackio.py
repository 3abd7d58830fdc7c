"""A whole run, stopped and resumed, with the real library and no network."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from rlalign.config.load import load_pipeline
from rlalign.running import loop
from rlalign.testing.bench import Silence, stop_early

pytest.importorskip("trackio")
SECRET = "0123456789abcdef" * 2 + "01234567"


def test_a_run_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    file = tmp_path / "pipeline.yaml"
    said = {
        "task": "rlalign.testing:Numbers",
        "policy": {"rlalign.testing:Logits": {}},
        "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
        "algorithm": "rlalign.testing:PolicyGradient",
        "generation": {"samples": 2, "max_new_tokens": 5},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.1},
        "evaluate": {"every": 2, "examples": 4},
        "observers": [
            {
                "trackio": {
                    "project": "tries",
                    "tags": ["small"],
                    "folder": str(tmp_path / "trackio"),
                    "patience": 600,
                }
            }
        ],
    }
    file.write_text(json.dumps(said))
    told: list[str] = []

    class Told(Silence):
        def note(self, text: str) -> None:
            told.append(text)

    stop_early(loop.start(load_pipeline(file), root=tmp_path / "runs", name="one", display=Told()))
    loop.resume(tmp_path / "runs/one", display=Told()).run()
    assert not [text for text in told if "trackio" in text]
    (file,) = (tmp_path / "trackio").glob("tries*.db")
    rows = [json.loads(line) for line in (tmp_path / "runs/one/metrics.jsonl").read_text().splitlines()]
    with closing(sqlite3.connect(file)) as base:
        logged = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        configs = base.execute("SELECT run_name, config FROM configs").fetchall()
    ((name, config),) = configs
    assert name.startswith("one-") and {row[0] for row in logged} == {name}
    about = json.loads(config)
    assert about["tags"] == ["small"] and about["pipeline"]["train"]["iterations"] == 3
    told_there = [(step, json.loads(metrics)) for _, step, metrics in logged]
    for key in ("reward/total", "eval/sum"):
        there = {(step, metrics[key]) for step, metrics in told_there if key in metrics}
        assert there and there == {(row["iteration"], row[key]) for row in rows if key in row}
    assert [m["ended/well"] for _, m in told_there if "ended/well" in m] == [0.0, 1.0]
    assert any("samples" in metrics for _, metrics in told_there)
    for one in tmp_path.rglob("*"):
        assert not one.is_file() or SECRET.encode() not in one.read_bytes(), one
