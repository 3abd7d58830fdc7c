"""A whole run, stopped and resumed, with the real library and no network."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlalign.config.load import load_pipeline
from rlalign.running import loop
from rlalign.testing.bench import Silence, stop_early

pytest.importorskip("wandb")
SECRET = "0123456789abcdef" * 2 + "01234567"


def records(file: Path) -> list[Any]:
    """The records of a `.wandb` file, in LevelDB's format of logs: blocks of 32 KiB, records cut over them."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, found, record, at = file.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(proto.Record.FromString(record))
            record = b""
    return found


def test_offline_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    file = tmp_path / "pipeline.yaml"
    said = {
        "task": "rlalign.testing:Numbers",
        "policy": {"rlalign.testing:Logits": {}},
        "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
        "algorithm": "rlalign.testing:PolicyGradient",
        "generation": {"samples": 2, "max_new_tokens": 5},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.1},
        "evaluate": {"every": 2, "examples": 4},
        "observers": [{"wandb": {"project": "tries", "tags": ["small"], "mode": "offline", "patience": 600}}],
    }
    file.write_text(json.dumps(said))
    told: list[str] = []

    class Told(Silence):
        def note(self, text: str) -> None:
            told.append(text)

    stop_early(loop.start(load_pipeline(file), root=tmp_path / "runs", name="one", display=Told()))
    loop.resume(tmp_path / "runs/one", display=Told()).run()
    assert not [text for text in told if "wandb" in text]
    kept = sorted((tmp_path / "runs/one/wandb").glob("offline-run-*/*.wandb"))
    parts = [records(one) for one in kept]
    runs = [record.run for part in parts for record in part if record.WhichOneof("record_type") == "run"]
    assert len(kept) == 2 and {(run.project, run.display_name, *run.tags) for run in runs} == {
        ("tries", "one", "small")
    }
    assert len({run.run_id for run in runs}) == 1
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["train"]["iterations"] == 3
    history = [r.history for part in parts for r in part if r.WhichOneof("record_type") == "history"]
    keys = Counter(item.key or "/".join(item.nested_key) for one in history for item in one.item)
    assert keys["reward/total"] >= 3 and keys["eval/total"] >= 2
    assert any(key.startswith("samples") for key in keys)
    exits = [r.exit.exit_code for part in parts for r in part if r.WhichOneof("record_type") == "exit"]
    assert exits == [1, 0]
    for one in tmp_path.rglob("*"):
        assert not one.is_file() or SECRET.encode() not in one.read_bytes(), one
