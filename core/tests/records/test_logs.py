"""Logs hold what was given, to the bit, and go back to any checkpoint."""

import math
import os
import struct
from io import FileIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from rlalign.errors import CheckpointError, RLAlignError
from rlalign.records.logs import Logs, read


def events(run):
    """Every event below a run, by step; checks the framing on the way."""
    found = []
    for path in sorted((run / "events").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            head, body, tail = data[8:12], data[12 : 12 + size], data[12 + size : 16 + size]
            assert head == struct.pack("<I", masked_crc32c(data[:8]))
            assert tail == struct.pack("<I", masked_crc32c(body))
            found.append(event_pb2.Event.FromString(body))
            data = data[16 + size :]
    return found


def scalars(run):
    return [
        (e.step, {v.tag: v.simple_value for v in e.summary.value})
        for e in events(run)
        if e.HasField("summary")
    ]


@given(st.floats())
def test_floats_come_back_to_the_bit(tmp_path_factory, x):
    run = tmp_path_factory.mktemp("run")
    Logs(run).append("metrics.jsonl", {"x": [x]})
    (row,) = read(run / "metrics.jsonl")
    back = float(row["x"][0])
    assert back.hex() == x.hex() if not math.isnan(x) else math.isnan(back)


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_stays_one_line_of_json(tmp_path_factory, text):
    run = tmp_path_factory.mktemp("run")
    Logs(run).append("samples.jsonl", {"text": text})
    assert list(read(run / "samples.jsonl")) == [{"text": text}]
    assert (run / "samples.jsonl").read_bytes().decode("utf-8").count("\n") == 1


def test_what_is_no_number_is_a_string(tmp_path):
    Logs(tmp_path).append("m.jsonl", {"a": math.nan, "b": (math.inf, -math.inf), "größe": 1})
    assert (tmp_path / "m.jsonl").read_text() == '{"a": "nan", "b": ["inf", "-inf"], "größe": 1}\n'


def test_metrics_become_scalars(tmp_path):
    logs = Logs(tmp_path)
    logs.metrics({"phase": "align", "iteration": 1, "reward/total": 0.5, "loss": math.nan}, step=11)
    logs.metrics({"phase": "align", "iteration": 2, "reward/total": 0.25}, step=12)
    assert [row["iteration"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2]
    (first, values), second = scalars(tmp_path)
    assert first == 11 and values["reward/total"] == 0.5 and math.isnan(values["loss"]) and len(values) == 2
    assert second == (12, {"reward/total": 0.25})
    assert events(tmp_path)[0].file_version == "brain.Event:2"


def test_a_row_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n{"a": ')
    assert list(read(tmp_path / "m.jsonl")) == [{"a": 1}]


def test_resuming_takes_every_log_back(tmp_path):
    (tmp_path / "mine.jsonl").write_text("a user's own file")
    logs = Logs(tmp_path)
    logs.metrics({"loss": 1.0}, step=1)
    logs.append("samples.jsonl", {"n": 1})
    committed = logs.sums()
    assert {name.partition("/")[0] for name in committed} == {"metrics.jsonl", "samples.jsonl", "events"}
    logs.metrics({"loss": 2.0}, step=2)
    logs.append("rows/grow.jsonl", {"n": 2})

    resumed = Logs(tmp_path)  # without a close: the process was killed
    resumed.cut(committed)
    assert list(read(tmp_path / "metrics.jsonl")) == [{"loss": 1.0}]
    assert scalars(tmp_path) == [(1, {"loss": 1.0})]
    assert not (tmp_path / "rows/grow.jsonl").exists()
    assert (tmp_path / "mine.jsonl").exists()

    assert resumed.sums() == committed  # logs not yet written to by this process count too
    resumed.metrics({"loss": 3.0}, step=2)
    assert scalars(tmp_path) == [(1, {"loss": 1.0}), (2, {"loss": 3.0})]
    assert len(list((tmp_path / "events").iterdir())) == 2
    again = resumed.sums()
    Logs(tmp_path).cut(committed)
    assert Logs(tmp_path).sums() == committed != again


def test_a_log_goes_on_after_a_cut_in_the_same_process(tmp_path):
    logs = Logs(tmp_path)
    logs.append("m.jsonl", {"n": 1})
    sizes = logs.sums()
    logs.append("m.jsonl", {"n": 2})
    logs.cut(sizes)
    logs.append("m.jsonl", {"n": 3})
    assert [row["n"] for row in read(tmp_path / "m.jsonl")] == [1, 3]


def test_without_a_commit_point_all_logs_go(tmp_path):
    logs = Logs(tmp_path)
    logs.metrics({"loss": 1.0}, step=1)
    logs.cut({})
    assert not (tmp_path / "metrics.jsonl").exists() and not list((tmp_path / "events").iterdir())
    assert logs.sums() == {}


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_log_shorter_than_committed_is_refused_and_nothing_cut(tmp_path, harm):
    logs = Logs(tmp_path)
    logs.append("a.jsonl", {"n": 1})
    logs.append("b.jsonl", {"n": 1})
    sizes = logs.sums()
    logs.append("a.jsonl", {"n": 2})
    path = tmp_path / "b.jsonl"
    path.unlink() if harm == "remove" else path.write_text("{")
    with pytest.raises(
        CheckpointError, match=r"b\.jsonl: the log (is missing|holds 1 bytes, but 9 were written).*--previous"
    ):
        Logs(tmp_path).cut(sizes)
    assert len(list(read(tmp_path / "a.jsonl"))) == 2


def test_a_log_that_something_else_writes_is_no_checkpoint(tmp_path):
    logs = Logs(tmp_path)
    logs.append("m.jsonl", {"n": 1})
    with (tmp_path / "m.jsonl").open("a") as other:
        other.write("{}\n")
    with pytest.raises(
        RLAlignError, match=r"m\.jsonl: holds 12 bytes, but this run has written 9: something else"
    ):
        logs.sums()


def test_a_file_that_is_no_log_is_not_appended_to(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/grow-1.jsonl").write_text("mine\n")
    with pytest.raises(RLAlignError, match=r"is there already, and .*\.logs does not list it"):
        Logs(tmp_path).append("rows/grow-1.jsonl", {"n": 1})
    assert (tmp_path / "rows/grow-1.jsonl").read_text() == "mine\n"


def test_what_can_be_read_of_a_damaged_log_is_kept(tmp_path):
    logs = Logs(tmp_path)
    for n in range(4):
        logs.append("m.jsonl", {"n": n})
    saved = logs.sums()
    lines = (tmp_path / "m.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "m.jsonl").write_bytes(lines[0] + b'{"n": \xff}\n' + lines[2] + b"[3]     \n" + lines[0])
    resumed = Logs(tmp_path)
    wrong = resumed.damage(saved)
    assert list(wrong) == ["m.jsonl"]
    kept = resumed.mend(saved, wrong)
    resumed.cut(kept)
    assert [row["n"] for row in read(tmp_path / "m.jsonl")] == [0, 2]
    assert resumed.sums() == kept


def test_a_line_that_is_damaged_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(CheckpointError, match=r"m\.jsonl:2: this line is not what was written"):
        list(read(tmp_path / "m.jsonl"))


def test_what_json_cannot_hold_is_not_written(tmp_path):
    logs = Logs(tmp_path)
    with pytest.raises(TypeError):
        logs.append("m.jsonl", {"x": object()})
    assert logs.sums() == {}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_says_so(tmp_path):
    logs = Logs(tmp_path)
    logs._open["m.jsonl"] = FileIO("/dev/full", "ab")
    with pytest.raises(RLAlignError, match=r"No space left on device\. The last checkpoint is intact"):
        logs.append("m.jsonl", {"n": 1})
