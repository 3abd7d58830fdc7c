"""Data that would hang a run or fill the memory ends in one sentence; what is large and real is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError
from rlalign_plugin_dataset import Dataset, limits


def train(path: Path, **options: Any) -> Any:
    return Dataset(Dataset.Config(path=path, **options)).examples("train")


def sparse(path: Path, size: int, begin: bytes = b"", end: bytes = b"") -> Path:
    """A file of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(begin)
        file.seek(size)
        file.write(end or b"\n")
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_a_line_of_300_megabytes(tmp_path, name):
    path = sparse(tmp_path / name, 300_000_000, b'{"prompt": "')
    with pytest.raises(ConfigError, match=rf"{name}:1: a line of more than 16,777,216 bytes"):
        train(path)


def test_a_value_of_300_megabytes_in_a_list(tmp_path):
    path = sparse(tmp_path / "d.json", 300_000_000, b'[{"prompt": "')
    with pytest.raises(ConfigError, match=r"d.json:1: not valid JSON"):
        train(path)


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json", "d.parquet"])
def test_100_000_columns(tmp_path, name):
    columns = [f"c{i}" for i in range(100_000)]
    path = tmp_path / name
    if name == "d.csv":
        path.write_text(",".join(columns) + "\n" + "," * 99_999 + "\n")
    elif name == "d.parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        fewer = columns[: limits.MOST_COLUMNS + 1]
        parquet.write_table(pyarrow.table({column: [1] for column in fewer}), path)
    else:
        row = json.dumps(dict.fromkeys(columns, 1))
        path.write_text(f"[{row}]" if name == "d.json" else row + "\n")
    with pytest.raises(ConfigError, match="columns, and at most 10,000 are read"):
        train(path)


DEEP = "[" * 100_000 + "]" * 100_000
SAID = {
    "a deep list": (f'{{"prompt": "p", "more": {DEEP}}}', "nested too deep"),
    "a list that is just too deep": (
        '{"prompt": "p", "more": ' + "[" * 100 + "]" * 100 + "}",
        "nested too deep",
    ),
    "a number of many digits": ('{"prompt": "p", "more": ' + "9" * 100_000 + "}", "thousands of digits"),
    "a score of many digits": (
        '{"prompt": "p", "responses": "r", "scores": ' + "9" * 4_000 + "}",
        "hundreds of digits",
    ),
}


@pytest.mark.parametrize("case", SAID)
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_a_row_that_no_program_writes(tmp_path, name, case):
    row, said = SAID[case]
    (tmp_path / name).write_text(f"[{row}]" if name == "d.json" else row + "\n")
    with pytest.raises(ConfigError, match=rf"{name}:1.*|none of 1 rows") as error:
        train(tmp_path / name, responses="responses" if "responses" in row else None)
    assert said in str(error.value) and len(str(error.value)) < 500


def test_a_cell_of_csv_that_is_a_deep_list_is_text(tmp_path):
    (tmp_path / "d.csv").write_text(f'prompt,responses\np,"{DEEP}"\n')
    assert train(tmp_path / "d.csv")[0].responses == (DEEP,)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "d.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is a pipe or a device"):
        train(path)


def bomb(path: Path, texts: int, length: int, rows: int = 1, **how: Any) -> Path:
    """Row groups of texts that are all the same, so that they are packed to nearly nothing."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    group = pyarrow.table({"prompt": pyarrow.array(["x" * length] * rows)})
    with parquet.ParquetWriter(path, group.schema, compression="zstd", **how) as writer:
        for _ in range(texts):
            writer.write_table(group)
    return path


def test_parquet_that_says_how_much_it_unpacks_to(tmp_path, monkeypatch):
    path = bomb(tmp_path / "d.parquet", 20, 10**6, use_dictionary=False)
    monkeypatch.setattr("rlalign_plugin_dataset.parquet_files.LARGE", 2**20)
    with pytest.raises(ConfigError, match=r"d.parquet: [\d,]+ bytes that unpack to 20,\d+,\d+ or more"):
        train(path)


def test_parquet_that_does_not_say_how_much_it_unpacks_to(tmp_path, monkeypatch):
    path = bomb(tmp_path / "d.parquet", 1, 10**5, rows=1_000)  # the text stands once in the file
    monkeypatch.setattr("rlalign_plugin_dataset.parquet_files.LARGEST_GROUP", 2**23)
    with pytest.raises(ConfigError, match=r"d.parquet: [\d,]+ bytes that unpack to [\d,]+ or more"):
        train(path)


@pytest.mark.slow
def test_a_parquet_file_of_20_gigabytes_in_little_room(tmp_path):
    path = bomb(tmp_path / "d.parquet", 20, 10**6, rows=1_000)
    assert path.stat().st_size < 10**6
    with pytest.raises(ConfigError, match="unpack to"):
        train(path)


def test_a_text_of_a_megabyte_and_a_thousand_messages_are_read(tmp_path):
    chat = [{"role": "user", "content": [{"type": "text", "text": "[" * 200}]}] * 1_000
    rows = [{"prompt": "x" * 10**6}, {"prompt": chat}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = train(tmp_path / "d.jsonl")
    assert len(first.prompt) == 10**6 and second.prompt == chat


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    (tmp_path / "d.jsonl").write_text("".join(f'{{"prompt": "{i}"}}\n' for i in range(1_000_000)))
    found = train(tmp_path / "d.jsonl")
    assert len(found) == 1_000_000 and found[999_999].prompt == "999999"


@pytest.mark.parametrize("name", ["pandas", "json"])
def test_what_is_no_dataset_on_the_hub_is_not_read(tmp_path, monkeypatch, name):
    """The library would take these for readers of local files, of pickled ones too."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"hub: {name}: is no dataset on the hub"):
        Dataset(Dataset.Config(hub=name)).examples("train")


def test_a_folder_of_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("rlalign_plugin_dataset.sources.MOST_FILES", 10)
    for i in range(11):
        (tmp_path / f"{i}.txt").touch()
    with pytest.raises(ConfigError, match="holds more than 10 files"):
        train(tmp_path)
