"""A whole run, stopped and resumed, with the real library and no network."""

from __future__ import annotations

import json

import pytest

from rlalign.config.load import load_pipeline
from rlalign.running import loop
from rlalign.testing.bench import Silence, stop_early

pytest.importorskip("mlflow")
SECRET = "0123456789abcdef" * 2 + "01234567"


def test_a_run_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    file = tmp_path / "pipeline.yaml"
    said = {
        "task": "rlalign.testing:Numbers",
        "policy": {"rlalign.testing:Logits": {}},
        "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
        "algorithm": "rlalign.testing:PolicyGradient",
        "generation": {"samples": 2, "max_new_tokens": 5},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.1},
        "evaluate": {"every": 2, "examples": 4},
        "observers": [{"mlflow": {"project": "tries", "tags": ["small"], "patience": 600}}],
    }
    file.write_text(json.dumps(said))
    told: list[str] = []

    class Told(Silence):
        def note(self, text: str) -> None:
            told.append(text)

    stop_early(loop.start(load_pipeline(file), root=tmp_path / "runs", name="one", display=Told()))
    loop.resume(tmp_path / "runs/one", display=Told()).run()
    assert not [text for text in told if "mlflow" in text]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tries")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["small"]) == ("one", "FINISHED", "true")
    assert run.data.tags["rlalign.ended"] == "finished"
    assert (
        run.data.params["train.iterations"] == "3"
        and run.data.params["observers.0.mlflow.project"] == "tries"
    )
    rows = [json.loads(line) for line in (tmp_path / "runs/one/metrics.jsonl").read_text().splitlines()]
    for name in ("reward/total", "eval/sum"):
        logged = {(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)}
        assert logged and logged == {(row["iteration"], row[name]) for row in rows if name in row}
    (last, *_) = sorted(
        (file.path for file in client.list_artifacts(run.info.run_id, "samples")), reverse=True
    )
    shown = json.loads(next((tmp_path / "runs/mlflow-artifacts").rglob(last)).read_text())
    assert last == "samples/0000003.json" and shown["columns"] == ["prompt", "response", "scores/sum"]
    for one in tmp_path.rglob("*"):
        assert not one.is_file() or SECRET.encode() not in one.read_bytes(), one
