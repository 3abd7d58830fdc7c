"""Nothing that a run's files say leads out of its folder, and nothing they hold is taken for what it is not."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rlalign.errors import CheckpointError, ConfigError
from rlalign.records import checkpoint
from rlalign.records.files import beside, inside, read_json, sweep
from rlalign.records.logs import Logs
from rlalign.records.rundir import RunDir, write_atomic
from rlalign.records.sums import FIRST_MARK, MARKS, Sum, sum_of, wrong_with


def create(root: Path) -> Path:
    with RunDir.create(root, "toy", pipeline="seed: 1\n", lock={"seed": 1}) as run:
        return run.path


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "rows/../../x", "/etc/x", "a//b", "./a", "a/.", "a\0b", "a\nb", None, 3, ["a"]]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match=r"names .*, which is no file in its folder: it was edited"):
        inside(tmp_path, name)


def test_a_name_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"rows: is a link"):
        inside(tmp_path, "rows/grow-1.jsonl")
    assert inside(tmp_path, "events/x.1") == tmp_path / "events/x.1"


def link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


KINDS = {"a link": link, "a pipe or a device": os.mkfifo}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["samples.jsonl", ".logs", "checkpoints", "checkpoints/00000001/x", "rows/a"]
)
def test_a_run_that_leads_elsewhere_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    run = create(tmp_path)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](run / name)
    for exclusive in (True, False):
        with pytest.raises(CheckpointError, match=f"{name}: is {kind}, which no run makes"):
            RunDir.open(run, exclusive=exclusive)


def test_a_file_of_two_names_is_read_but_not_written(tmp_path: Path) -> None:
    run = create(tmp_path)
    (run / "metrics.jsonl").write_text("")
    os.link(run / "metrics.jsonl", tmp_path / "copy")
    RunDir.open(run, exclusive=False)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is a file that has another name"):
        RunDir.open(run)


def test_what_a_user_put_beside_it_is_left_alone(tmp_path: Path) -> None:
    run = create(tmp_path)
    link(run / "notes")
    for name in (".tmp-mine", ".tmp-metrics.jsonl-12", ".old-00000001"):
        (run / name).mkdir()
    RunDir.open(run).close()
    assert {".tmp-mine", ".tmp-metrics.jsonl-12", ".old-00000001", "notes"} <= set(os.listdir(run))


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    beside(tmp_path / "lock.json").write_text("half")
    (beside(tmp_path / "model") / "x").mkdir(parents=True)
    outside = tmp_path.with_name(tmp_path.name + "-outside")
    outside.mkdir()
    (outside / "mine").write_text("")
    kept = beside(tmp_path / "model")
    kept.symlink_to(outside)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == [kept.name] and (outside / "mine").exists()


def test_a_neighbour_of_what_is_written_stays(tmp_path: Path) -> None:
    (tmp_path / ".tmp-x").write_text("mine")
    write_atomic(tmp_path / "x", "new")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "x", "\ud800")
    assert sorted(os.listdir(tmp_path)) == [".tmp-x", "x"]
    assert (tmp_path / ".tmp-x").read_text() == "mine"


def test_only_what_is_ours_among_checkpoints_is_deleted(tmp_path: Path) -> None:
    mine = [".tmp-notes", ".old-1", "2024", "0000000000001", "²" * 8]
    for name in (*mine, ".tmp-00000001", ".old-00000002", "00000003"):
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-00000009").symlink_to(tmp_path / "2024")
    assert checkpoint.find(tmp_path) == [3]
    checkpoint.settle(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, ".tmp-00000009"])


BAD = {
    "empty": b"",
    "of another type": b"[1]",
    "cut": b'{"a": ',
    "not UTF-8": b'\xff{"a": 1}',
    "deep": b'{"a":' * 100_000,
    "a huge number": b'{"a": ' + b"9" * 10_000 + b"}",
    "another field": b'{"b": 1}',
    "another value": b'{"a": "1"}',
}


class Shape(BaseModel):
    a: int


@pytest.mark.parametrize("content", BAD.values(), ids=list(BAD))
def test_json_that_is_not_ours_is_told_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"x\.json: is (no JSON|not what was written).* Put it back\."
    ) as caught:
        read_json(tmp_path / "x.json", Shape, "Put it back.")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "missing"])
def test_what_is_no_file_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.json"
    if kind != "missing":
        {"folder": Path.mkdir, "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}[kind](
            path
        )
    with pytest.raises(CheckpointError, match=r"x\.json: is (no file|missing)"):
        read_json(path, dict)


@pytest.mark.parametrize("name", [".logs", "checkpoints/00000001/manifest.json"])
@pytest.mark.parametrize("content", BAD.values(), ids=list(BAD))
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    if content == BAD["of another type"]:
        content = b'[{"a": 1}]'
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Logs(tmp_path) if name == ".logs" else checkpoint.read(tmp_path / "checkpoints", 1)


# Checksums


def test_a_sum_follows_from_the_bytes_alone(tmp_path: Path) -> None:
    random_ = random.Random(0)
    data, one, at = random_.randbytes(3 * MARKS * FIRST_MARK + 17), Sum(), 0
    while at < len(data):
        size = random_.choice([1, 100, FIRST_MARK, 50_000])
        one.add(data[at : at + size])
        at += size
    (tmp_path / "x").write_bytes(data + b"more")
    assert one.saved() == sum_of(tmp_path / "x", len(data)).saved()
    assert MARKS / 2 <= len(one.saved()["marks"]) < MARKS
    assert json.loads(json.dumps(one.saved())) == one.saved()


@pytest.mark.parametrize("size", [1, FIRST_MARK, 3 * FIRST_MARK + 5, 5 * MARKS * FIRST_MARK])
def test_a_changed_byte_is_found_and_about_where(tmp_path: Path, size: int) -> None:
    data = bytearray((b"x" * 99 + b"\n") * (size // 100 + 1))[:size]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data)
    saved = sum_of(path).saved()
    assert wrong_with(path, saved, sum_of(path, size)) is None
    for at in {0, size // 3, size - 1}:
        data[at] ^= 4
        path.write_bytes(data)
        found = sum_of(path, size)
        between = found.differs(saved)
        assert between is not None and between[0] <= at < between[1] <= between[0] + max(
            FIRST_MARK, size / 25
        )
        told = wrong_with(path, saved, found)
        assert told is not None and f"bytes {between[0]} to {between[1]}, lines " in told
        first = int(told.split("lines ")[1].split(" to ")[0])
        assert first <= at // 100 + 1 <= int(told.split("lines ")[1].split(" to ")[1].split(")")[0]) + 1
        data[at] ^= 4


def test_another_ones_run_is_not_opened_for_a_name(tmp_path: Path) -> None:
    run = create(tmp_path)
    (run / ".logs").write_text('["../outside"]')
    (tmp_path / "outside").write_text("mine")
    with pytest.raises((CheckpointError, ConfigError), match=r"names '\.\./outside'"):
        Logs(run)
    assert (tmp_path / "outside").read_text() == "mine"
