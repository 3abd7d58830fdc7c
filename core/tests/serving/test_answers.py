"""What served rewards answered is written down, read with suspicion, and goes when nothing needs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlalign.errors import CheckpointError, RLAlignError
from rlalign.records.answers import Answers
from rlalign.records.rundir import RunDir


def answers(path: Path) -> Answers:
    directory = RunDir(path)
    return Answers(lambda: directory)


def test_an_answer_is_there_for_the_next_process(tmp_path: Path) -> None:
    written = answers(tmp_path)
    written.add(3, {"a": {"value": [0.1, "nan"]}, "b": 2})
    written.add(3, {"a": "another, which is not taken", "c": 3})
    written.add(4, {"a": 4})
    read = answers(tmp_path)
    assert read.known(3) == {"a": {"value": [0.1, "nan"]}, "b": 2, "c": 3}
    assert read.known(4) == {"a": 4}
    assert read.known(5) == {}


def test_a_line_that_a_killed_process_left_half_is_cut_off(tmp_path: Path) -> None:
    answers(tmp_path).add(0, {"a": 1, "b": 2})
    file = tmp_path / "served/00000000.jsonl"
    for left in (len(file.read_bytes()) - 1, len(file.read_bytes()) - 5):
        file.write_bytes(file.read_bytes()[:left])
        read = answers(tmp_path)
        assert read.known(0) == {"a": 1}
        read.add(0, {"b": 2})
        assert answers(tmp_path).known(0) == {"a": 1, "b": 2}


@pytest.mark.parametrize("edit", [(b"0.25", b"0.35"), (b'"a"', b'"A"'), (b"]\n", b"] \n"), (b"[", b"\n[")])
def test_an_edited_line_is_refused(tmp_path: Path, edit: tuple[bytes, bytes]) -> None:
    answers(tmp_path).add(0, {"a": 0.25})
    file = tmp_path / "served/00000000.jsonl"
    file.write_bytes(file.read_bytes().replace(*edit))
    with pytest.raises(CheckpointError, match=re.escape(f"{file}:1: is not what was written")):
        answers(tmp_path).known(0)


def test_a_link_is_followed_neither_to_read_nor_to_write(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    other = tmp_path / "other"
    other.write_text("mine\n")
    (tmp_path / "served/00000000.jsonl").symlink_to(other)
    with pytest.raises(CheckpointError, match="is no file"):
        answers(tmp_path).known(0)
    assert other.read_text() == "mine\n"


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "served").write_text("a file where the folder should be")
    with pytest.raises(RLAlignError, match="what the reward answered cannot be written"):
        answers(tmp_path).add(0, {"a": 1})


def test_what_no_checkpoint_needs_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    written = answers(tmp_path)
    written.drop(5)  # of a run that has no served reward
    for tick in range(6):
        written.add(tick, {"a": tick})
    mine = tmp_path / "served/notes-00000001.jsonl"
    mine.write_text("a user's own")
    written.drop(4)
    assert sorted(file.name for file in (tmp_path / "served").iterdir()) == [
        "00000004.jsonl",
        "00000005.jsonl",
        mine.name,
    ]
