"""What other tasks build on: readers of their own, tables without a header, files of a dataset with a script."""

from __future__ import annotations

import json
import random
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from rlalign import ConfigError, Example
from rlalign.data.example import Without
from rlalign.learning.draw import Draw
from rlalign.randomness import Seeds
from rlalign_plugin_dataset import Dataset, sources
from rlalign_plugin_dataset.csv_files import Csv
from rlalign_plugin_dataset.index import BadRow, Examples, Reader, index
from rlalign_plugin_dataset.opening import open_file
from rlalign_plugin_dataset.tables import Row


class Words(Reader):
    """An example a word; `-` is left out, and a row without words is bad."""

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        words = row["text"].split()
        if not words:
            raise BadRow("no words")
        return [
            "are dashes" if w == "-" else Example(id=f"{place}#{i}", prompt=w) for i, w in enumerate(words)
        ]


def words(folder: Path, texts: list[str], **options: Any) -> Examples:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = open_file(path, path.name, None)
    return index([table], [Words(table.name)], ["train"], lambda e, r: "train", **{"skip": True, **options})[
        "train"
    ]


def test_a_row_may_hold_several_examples_and_leave_some_out(tmp_path):
    with pytest.warns(UserWarning, match="left out") as said:
        found = words(tmp_path, ["a b", "- c -", "", "d"])
    assert [(e.id, e.prompt) for e in found] == [
        ("d.jsonl:1#0", "a"),
        ("d.jsonl:1#1", "b"),
        ("d.jsonl:2#1", "c"),
        ("d.jsonl:4#0", "d"),
    ]
    assert found.found == 7  # six words and a bad row
    assert [str(w.message) for w in said] == [
        "d.jsonl: 1 of 4 rows left out:\n  d.jsonl:3: no words",
        "d.jsonl: 4 of 7 examples kept; left out:\n  2 are dashes (first d.jsonl:2)",
    ]
    with pytest.raises(ConfigError, match=r"1 of 4 rows cannot be used"):
        words(tmp_path, ["a b", "- c -", "", "d"], skip=False)
    with pytest.raises(ConfigError, match=r"0 of 2 examples kept; left out:\n  2 are dashes"):
        words(tmp_path, ["- -"])


def test_examples_in_another_order(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = words(tmp_path, ["a b", "c"])
    assert [e.prompt for e in found.take(numpy.array([2, 0]))] == ["c", "a"]


def test_a_row_that_changes_its_mind(tmp_path, monkeypatch):
    found = words(tmp_path, ["a"])
    monkeypatch.setattr(Words, "examples", lambda self, row, place: ["is gone"])
    with pytest.raises(ConfigError, match=r"d\.jsonl:1: is gone; it was sound when the run began"):
        found[0]


def test_a_table_without_a_header(tmp_path):
    (tmp_path / "d.tsv").write_text("a\tb\nc\td\te\nf\tg\n")
    table = Csv(tmp_path / "d.tsv", "d.tsv", "\t", names=("x", "y"))
    assert table.columns() == ["x", "y"]
    scanned = list(table.scan())
    assert [s.row for s in scanned] == [
        {"x": "a", "y": "b"},
        "3 fields where there should be 2",
        {"x": "f", "y": "g"},
    ]
    assert table.read(scanned[2].start, scanned[2].length) == {"x": "f", "y": "g"}


def test_files_that_are_no_data(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/a.json").write_text('{"prompt": "a"}')
    (tmp_path / "test/bad.json").write_text('{"x": 1}')
    assert [t.name for t in sources.local(tmp_path, {}, ignore=["bad.json"])["test"]] == ["test/a.json"]


def test_packed_files_are_named(tmp_path):
    (tmp_path / "train.jsonl.zip").write_bytes(b"")
    with pytest.raises(
        ConfigError,
        match=r"no data files .*; train\.jsonl\.zip: packed files but `\.gz` are not read; `unzip",
    ):
        sources.local(tmp_path, {})


def test_folders_and_files_of_a_dataset_on_the_hub(monkeypatch):
    asked: list[Any] = []

    def load_dataset(path: str, **how: Any) -> Any:
        asked.append((path, how))
        return {"train": types.SimpleNamespace(column_names=["a"])}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert sources.hub("x/y", None, "main", {}, folder="part")["train"][0].name == "x/y/part/train"
    sources.hub("x/y", None, "abc", {}, files={"train": "data/train.json"})
    sources.hub("x/y", None, None, {}, files={"train": "data/*.parquet"})
    assert asked == [
        ("x/y", {"name": None, "revision": "main", "data_dir": "part"}),
        ("json", {"data_files": {"train": "hf://datasets/x/y@abc/data/train.json"}}),
        ("parquet", {"data_files": {"train": "hf://datasets/x/y/data/*.parquet"}}),
    ]


def test_response_counts_are_those_of_the_examples(tmp_path: Path) -> None:
    """Known from the one walk over the rows, in every split and order."""
    rows = [{"prompt": f"p{i}", "responses": ["a"] * (1 + i % 4), "id": str(i)} for i in range(50)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {"train": 0.7, "val": 0.3}
    config = Dataset.Config(
        path=str(tmp_path / "data.jsonl"),
        responses="responses",
        prompt="prompt",
        id="id",
        splits=splits,
        join="",
    )
    for split in splits:
        examples = Dataset(config).examples(split)
        assert examples.response_counts.tolist() == [len(e.responses) for e in examples]
        some = examples.take(numpy.array([3, 0, 2]))
        assert some.response_counts.tolist() == [len(examples[i].responses) for i in (3, 0, 2)]


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("how", ["passes", "responses", "examples"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_order_of_rows_is_no_part_of_a_seed(how: str, ids: bool, whole: bool, tmp_path: Path) -> None:
    """What is drawn, and when, is the same from a file whose rows were put in another order; of all or of some."""
    rows = [
        {
            "prompt": f"p{i}",
            "responses": [f"a{i} {j}" for j in range(1 + i % 4)],
            "scores": [i % 5 / 4] * (1 + i % 4),
        }
        | ({"id": str(i)} if ids else {})
        for i in range(60)
    ]
    drawn = []
    for name in ("one", "other"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = {"prompt": "prompt", "responses": "responses", "scores": "scores", "join": ""}
        said = Dataset.Config(path=str(path), id="id" if ids else None, **columns)
        data: Sequence[Example] = Dataset(said).examples("train")
        if not whole:
            data = Without(data, [i for i, e in enumerate(data) if str(e.prompt).endswith("7")])
        draw = Draw(data, Seeds(0), ("draw", 0, 0))
        if how != "passes":
            weights = [e.scores[0] for e in draw.data for _ in (e.responses if how == "responses" else [0])]
            draw.weights(torch.tensor(weights), "response" if how == "responses" else "example")
        drawn.append([(e.prompt, e.responses) for e in draw.next(150)])
        random.Random(1).shuffle(rows)
    assert drawn[0] == drawn[1]
    assert len({prompt for prompt, _ in drawn[0]}) > 30
    assert any(str(prompt).endswith("7") for prompt, _ in drawn[0]) == whole
