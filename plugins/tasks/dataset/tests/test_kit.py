"""A dataset does what every task must: of text with logged responses, and of chats without."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlalign.testing import TaskTests


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestText(TaskTests):
    component = "dataset"
    other_options = {"limit": 2}

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        rows = [
            {
                "prompt": f"{i} plus {i}?",
                "responses": [f" {2 * i}", " Ωhm"],
                "scores": [1.0, -0.5],
                "answer": 2 * i,
            }
            for i in range(20)
        ]
        path = write(tmp_path / "sums.jsonl", rows)
        self.options = {"path": path, "splits": {"train": 0.8, "val": 0.2}}  # type: ignore[misc]


class TestChats(TaskTests):
    component = "dataset"
    other_options = {"limit": 2}

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        for split, count in (("train", 5), ("val", 3)):
            rows = [{"messages": [{"role": "user", "content": f"{split} {i}?"}]} for i in range(count)]
            write(tmp_path / f"{split}.jsonl", rows)
        self.options = {"path": tmp_path, "chat": "messages"}  # type: ignore[misc]


class TestGatheredAndPacked(TaskTests):
    component = "dataset"
    other_options = {"style": "plain"}

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        rows = [{"mr": f"name[{i % 20}]", "ref": f"It is {i % 20}, {i}."} for i in range(50)]
        packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        (tmp_path / "trainset.jsonl.gz").write_bytes(packed)
        self.options = {  # type: ignore[misc]
            "path": tmp_path,
            "prompt": "mr",
            "responses": "ref",
            "references": "ref",
            "gather": True,
            "join": "",
            "style": "chat",
            "splits": {"train": 0.8, "val": 0.2},
        }
