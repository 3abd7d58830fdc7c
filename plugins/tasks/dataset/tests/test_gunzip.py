"""Packed files: read from any place, bounded, and nothing of them is kept but marks."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError
from rlalign_plugin_dataset import Dataset, gunzip
from rlalign_plugin_dataset.gunzip import Marks, unpacked
from rlalign_plugin_dataset.tables import opened


def noise(size: int) -> bytes:
    """Text that hardly packs."""
    rng = random.Random(0)
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz \n", k=size)).encode()


def train(path: Path, **options: Any) -> Any:
    return Dataset(Dataset.Config(path=path, **options)).examples("train")


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize("most", [4, 1024])
def test_every_place_reads_as_in_the_unpacked_file(tmp_path, monkeypatch, members, most):
    """With few marks too, and where the file is several packed ones."""
    monkeypatch.setattr(gunzip, "BETWEEN", 2**12)
    monkeypatch.setattr(gunzip, "MOST_MARKS", most)
    data = noise(300_000)
    part = len(data) // members
    path = tmp_path / "d.gz"
    path.write_bytes(b"".join(gzip.compress(data[i * part : (i + 1) * part]) for i in range(members)))
    marks, rng = Marks(), random.Random(1)
    for _ in range(40):  # each opened anew, as rows are
        at, size = rng.randrange(len(data)), rng.choice([1, 100, 50_000])
        with unpacked(path.open("rb"), "d.gz", marks) as file:
            file.seek(at)
            assert file.read(size) == data[at : at + size]
            file.seek(at // 2)
            assert file.read(10) == data[at // 2 :][:10] and file.tell() == at // 2 + 10
    assert 2 < len(marks.all) <= most
    with opened(path, "d.gz") as file:
        assert file.read() == data and file.read() == b""
        file.seek(len(data) + 5)
        assert file.read() == b""


def test_rows_are_read_in_any_order(tmp_path):
    rows = [{"prompt": f"{i} " + "ä" * (i % 700)} for i in range(2_000)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "d.jsonl").write_bytes(text)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(text))
    plain, packed = train(tmp_path / "d.jsonl"), train(tmp_path / "d.jsonl.gz")
    order = random.Random(0).sample(range(2_000), 500)
    assert [packed[i].prompt for i in order] == [plain[i].prompt for i in order]
    assert [e.prompt for e in packed] == [row["prompt"] for row in rows]
    assert packed[1].id == "d.jsonl.gz:2"


def test_a_packed_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"prompt": "b"}\n'))
    found = train(path)
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    with pytest.raises(ConfigError, match="has changed since it was first read"):
        found[1]


def test_a_fingerprint_is_of_what_is_packed(tmp_path):
    path = tmp_path / "d.jsonl.gz"

    def fingerprint(text: bytes, **how: Any) -> str:
        path.write_bytes(gzip.compress(text, **how))
        return Dataset(Dataset.Config(path=path)).fingerprint("train")

    first = fingerprint(b'{"prompt": "a"}\n', compresslevel=1, mtime=1)
    assert first == fingerprint(b'{"prompt": "a"}\n', compresslevel=9, mtime=2)
    assert first != fingerprint(b'{"prompt": "b"}\n')


def bomb(path: Path, piece: bytes, times: int) -> Path:
    with gzip.open(path, "wb") as file:
        for _ in range(times):
            file.write(piece)
    return path


def test_a_packed_line_of_300_megabytes(tmp_path):
    path = bomb(tmp_path / "d.jsonl.gz", b"x" * 10**6, 300)
    with pytest.raises(ConfigError, match=r"d\.jsonl\.gz:1: a line of more than 16,777,216 bytes"):
        train(path)


def test_what_unpacks_to_far_more_than_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(gunzip, "LARGE", 2**20)
    path = bomb(tmp_path / "d.jsonl.gz", b"\n" * 10**6, 20)
    assert path.stat().st_size < 2**20 / 100 * 5
    said = r"d\.jsonl\.gz: unpacks to more than [\d,]+ bytes, which is more than 100 times its size"
    with pytest.raises(ConfigError, match=said):
        train(path)


def test_what_is_held_of_a_packed_file(tmp_path):
    """8 MB of rows, of which some are read: marks, and the piece that was unpacked last."""
    line = json.dumps({"prompt": noise(990).decode()}).encode() + b"\n"
    path = bomb(tmp_path / "d.jsonl.gz", line, 8_000_000 // len(line))
    tracemalloc.start()
    try:
        found = train(path)
        for i in range(0, len(found), len(found) // 50):
            found[i]
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 8_000_000 // len(line)
    assert held < 3_000_000 and peak < 4_000_000
