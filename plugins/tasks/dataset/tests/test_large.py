"""Large data: what is known of its rows is made once, kept, mapped, and never half there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest

from rlalign import ConfigError
from rlalign_plugin_dataset import Dataset, ids, limits, places

OPTIONS: dict[str, Any] = {"prompt": "q", "responses": "a", "id": "id", "join": ""}


def rows(path: Path, count: int, **more: int) -> Path:
    with path.open("w") as file:
        for i in range(count):
            file.write(
                json.dumps({"id": f"r{more.get(str(i), i)}", "q": f"q{i}", "a": ["a"] * (1 + i % 3)}) + "\n"
            )
    return path


def task(path: Path, **options: Any) -> Dataset:
    return Dataset(Dataset.Config(path=path, **{**OPTIONS, **options}))


def told(found: Any) -> list[Any]:
    return [(e.id, e.prompt, e.responses) for e in found]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indexes are kept, of files of any size."""
    monkeypatch.setenv("RLALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(limits, "KEPT_BYTES", 1)
    return tmp_path / "cache" / "index"


def test_what_is_kept_is_what_is_in_memory(tmp_path, cache, monkeypatch):
    path = rows(tmp_path / "d.jsonl", 3_000)
    for options in ({}, {"splits": {"train": 0.8, "val": 0.1}}, {"limit": 77}, {"gather": True}):
        made, again = task(path, **options), task(path, **options)
        found = [(told(t.examples(s)), t.fingerprint(s)) for t in (made, again) for s in ("train",)]
        monkeypatch.setattr(limits, "KEPT_BYTES", 2**30)
        small = task(path, **options)
        expected = told(small.examples("train")), small.fingerprint("train")
        monkeypatch.setattr(limits, "KEPT_BYTES", 1)
        assert found == [expected] * 2
        for name in ("response_counts", "row_keys"):
            assert numpy.array_equal(
                getattr(again.examples("train"), name), getattr(small.examples("train"), name)
            )
    assert len(list(cache.iterdir())) == 4, "an index each, and nothing else"


def test_rows_are_walked_over_once(tmp_path, cache, monkeypatch):
    path = rows(tmp_path / "d.jsonl", 500)
    first = task(path)
    expected = told(first.examples("train")), first.fingerprint("train")
    second = task(path)
    (table,) = second._there()["train"]
    monkeypatch.setattr(table, "digest", lambda: pytest.fail("the contents are read again"))
    assert (told(second.examples("train")), second.fingerprint("train")) == expected
    held = second.examples("train")._places
    assert all(isinstance(_root(values), numpy.memmap) for values in held)


def _root(values: Any) -> Any:
    while not isinstance(values, numpy.memmap) and isinstance(values.base, numpy.ndarray):
        values = values.base
    return values


def test_other_contents_or_options_have_an_index_of_their_own(tmp_path, cache):
    path = rows(tmp_path / "d.jsonl", 100)
    before = task(path).fingerprint("train")
    assert len(task(path, limit=10).examples("train")) == 10
    rows(path, 120)
    assert len(task(path).examples("train")) == 120
    assert task(path).fingerprint("train") != before
    assert len(list(cache.iterdir())) == 3


def test_an_index_that_was_cut_is_made_again(tmp_path, cache):
    path = rows(tmp_path / "d.jsonl", 100)
    expected = told(task(path).examples("train"))
    (folder,) = cache.iterdir()
    for name, cut in (("0.rows", 8), ("0.keys", 0), ("about.json", 5)):
        os.truncate(folder / name, cut)
        assert told(task(path).examples("train")) == expected
    (folder / "0.answers").unlink()
    assert told(task(path).examples("train")) == expected


def test_bad_rows_are_refused_and_leave_no_index_and_skipped_ones_are_told_of_each_time(tmp_path, cache):
    path = rows(tmp_path / "d.jsonl", 50)
    with path.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(ConfigError, match=r"1 of 51 rows cannot be used"):
        task(path).examples("train")
    assert list(cache.iterdir()) == []
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"1 of 51 rows left out:\n  d.jsonl:51"):
            assert len(task(path, bad_rows="skip").examples("train")) == 50


def test_a_folder_that_cannot_be_written(tmp_path, cache, monkeypatch):
    path = rows(tmp_path / "d.jsonl", 50)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLALIGN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept here .*RLALIGN_CACHE"):
        assert len(task(path).examples("train")) == 50


def test_a_file_that_was_written_anew_with_the_same_size_and_time_has_another_index(tmp_path, cache):
    path = rows(tmp_path / "d.jsonl", 100)
    before, first = os.stat(path), task(path).fingerprint("train")
    with path.open("r+") as file:
        file.write(path.read_text().replace('"q7"', '"p7"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = task(path)
    assert found.examples("train")[7].prompt == "p7" and found.fingerprint("train") != first


def test_a_home_that_nobody_has(tmp_path, cache, monkeypatch):
    path = rows(tmp_path / "d.jsonl", 50)
    monkeypatch.setenv("RLALIGN_CACHE", "~nobody-has-this-name/cache")
    with pytest.warns(UserWarning, match="~nobody-has-this-name/cache.* cannot be kept .*RLALIGN_CACHE"):
        assert len(task(path).examples("train")) == 50


@pytest.mark.parametrize("link", [False, True])
def test_what_another_user_has_put_there_is_not_read(tmp_path, cache, monkeypatch, link):
    path = rows(tmp_path / "d.jsonl", 50)
    task(path).examples("train")
    (folder,) = cache.iterdir()
    if link:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, "said": ["anything"], "digests": ["0"]}))
    own = os.geteuid() + 1  # as another user would see it
    monkeypatch.setattr(os, "geteuid", lambda: own)
    found = task(path)
    with pytest.warns(UserWarning, match="another user.*RLALIGN_CACHE") as said:
        assert len(found.examples("train")) == 50
    assert len(said) == 1 and found.fingerprint("train") != "0" and found.examples("train").digests is None


def test_an_index_with_other_words_in_it_is_made_again(tmp_path, cache):
    path = rows(tmp_path / "d.jsonl", 50)
    expected = task(path).fingerprint("train")
    (folder,) = cache.iterdir()
    about = json.loads((folder / "about.json").read_text())
    for wrong in (
        {"said": 5},
        {"said": [5]},
        {"digests": [[]]},
        {"digests": []},
        {"count": "x"},
        {"splits": {"x": 50}},
    ):
        (folder / "about.json").write_text(json.dumps({**about, **wrong}))
        assert task(path).fingerprint("train") == expected, wrong


READS = """
import sys
from rlalign_plugin_dataset import Dataset, limits
limits.KEPT_BYTES = 1
task = Dataset(Dataset.Config(path=sys.argv[1], prompt="q", responses="a", id="id", join=""))
print(len(task.examples("train")), task.fingerprint("train"))
"""


def test_processes_that_begin_together_share_one(tmp_path, cache):
    path = rows(tmp_path / "d.jsonl", 20_000)
    begun = [
        subprocess.Popen([sys.executable, "-c", READS, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {process.communicate(timeout=120)[0] for process in begun}
    assert said == {f"20000 {task(path).fingerprint('train')}\n"}
    assert len(list(cache.iterdir())) == 1


# -- ids that stand twice, when they are too many to remember --------------------------------------------------


@pytest.mark.parametrize("few", [10, 400, 10_000])
@pytest.mark.parametrize("twice", [{}, {"7": 3}, {"7": 3, "800": 100, "999": 998}, {"900": 7, "901": 7}])
def test_ids_that_stand_twice(tmp_path, monkeypatch, few, twice):
    path = rows(tmp_path / "d.jsonl", 1_000, **twice)
    monkeypatch.setattr(ids, "FEW", few)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = task(path, bad_rows="skip").examples("train")
    expected = [f"q{i}" for i in range(1_000) if str(i) not in twice]
    assert [e.prompt for e in found] == expected
    text = "".join(str(w.message) for w in said)
    for line, first in twice.items():
        assert f"d.jsonl:{int(line) + 1}: the id `r{first}` is that of d.jsonl:{first + 1} too" in text
    if twice:
        with pytest.raises(ConfigError, match=r"the id `r\d+` is that of d.jsonl:\d+ too"):
            task(path).examples("train")


def test_gathered_rows_may_share_an_id_with_their_prompt_only(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, "FEW", 10)
    path = tmp_path / "d.jsonl"
    lines = [{"id": f"r{i // 2}", "q": f"q{i // 2}", "a": str(i)} for i in range(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(task(path, gather=True).examples("train")) == 100
    lines[150]["q"] = "another"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match="the id `r75` is that of"):
        task(path, gather=True).examples("train")


def test_an_index_takes_no_memory_for_its_rows(tmp_path, cache, monkeypatch):
    """Five times the rows: the same memory while the index is made, and none while it is used."""
    monkeypatch.setattr(ids, "FEW", 1_000)
    monkeypatch.setattr(places, "AT_ONCE", 1_000)
    monkeypatch.setattr("rlalign.data.ordering.AT_ONCE", 1_000)
    peaks, held = [], []
    for count in (8_000, 40_000):
        path = rows(tmp_path / f"d{count}.jsonl", count)
        tracemalloc.start()
        task(path).examples("train")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        tracemalloc.start()
        kept = task(path)
        assert (
            len(kept.examples("train")) == count and kept.examples("train")[count - 1].id == f"r{count - 1}"
        )
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.3 < 4_000_000
    assert held[1] < held[0] * 1.3 < 1_000_000, held
