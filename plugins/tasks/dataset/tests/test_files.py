"""Reading files: places, formats, splits, laziness, and everything that can be wrong with them."""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlalign import ConfigError, Example
from rlalign_plugin_dataset import Dataset
from rlalign_plugin_dataset.index import split_by_share

QUIET = {"join": ""}
ONCE = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def dataset(path: Path, **options: Any) -> Dataset:
    return Dataset(Dataset.Config(path=path, **{**QUIET, **options}))


def train(path: Path, **options: Any) -> list[Example]:
    return list(dataset(path, **options).examples("train"))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts(examples: Any) -> list[Any]:
    return [example.prompt for example in examples]


# -- formats ----------------------------------------------------------------------------------------------

ROWS = [
    {"prompt": "wer?", "responses": ["ich", "du"], "scores": [1.0, -0.5], "meta": {"k": [1, {"x": None}]}},
    {"prompt": "naïve 🙂\nzwei", "responses": ["ja"], "scores": [0.25], "meta": {}},
    {"prompt": "", "responses": [""], "scores": [3.0], "meta": {"k": 0}},
]
EXPECTED = [
    ("wer?", ("ich", "du"), (1.0, -0.5), {"k": [1, {"x": None}]}),
    ("naïve 🙂\nzwei", ("ja",), (0.25,), {}),
    ("", ("",), (3.0,), {"k": 0}),
]


def describe_error(examples: Any) -> list[Any]:
    return [(e.prompt, e.responses, e.scores, e.meta) for e in examples]


def test_json_lines(tmp_path):
    path = tmp_path / "d.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_bytes(f"\ufeff{lines[0]}\r\n\n{lines[1]}\n  \n{lines[2]}".encode())
    found = train(path)
    assert describe_error(found) == EXPECTED
    assert [e.id for e in found] == ["d.jsonl:1", "d.jsonl:3", "d.jsonl:5"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list(tmp_path, indent):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=indent), encoding="utf-8")
    found = train(path)
    assert describe_error(found) == EXPECTED
    starts = ["1", "1.2", "1.3"] if indent is None else [2, 21, 31]
    assert [e.id for e in found] == [f"d.json:{n}" for n in starts]
    assert [e.id for e in reversed(found)] == [e.id for e in found][::-1]
    if indent:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [lines[n - 1] for n in starts] == ["  {"] * 3


def test_json_lines_under_the_name_json(tmp_path):
    assert describe_error(train(jsonl(tmp_path / "d.json", ROWS))) == EXPECTED


def test_csv(tmp_path):
    path = tmp_path / "d.csv"
    text = (
        "prompt,responses,scores,note\r\n"
        '"one, ""two""\r\nthree",yes,0.5,n\r\n'
        '\r\nplain \u2028 text,"[""a"", ""b""]","[1, 2]",\r\n'
    )
    path.write_text("\ufeff" + text, encoding="utf-8", newline="")
    found = train(path)
    assert describe_error(found) == [
        ('one, "two"\r\nthree', ("yes",), (0.5,), {"note": "n"}),
        ("plain \u2028 text", ("a", "b"), (1.0, 2.0), {"note": ""}),
    ]
    assert [e.id for e in found] == ["d.csv:2", "d.csv:5"]


def test_tsv_and_other_delimiters(tmp_path):
    (tmp_path / "d.tsv").write_text("prompt\tb\na,b\tc\n")
    assert prompts(train(tmp_path / "d.tsv")) == ["a,b"]
    for by in (";", "\t"):
        (tmp_path / "e.csv").write_text(f"prompt{by}b\na,b{by}c\n")
        assert prompts(train(tmp_path / "e.csv")) == ["a,b"]
    (tmp_path / "e.csv").write_text("prompt|b\na,b|c\n")
    assert prompts(train(tmp_path / "e.csv", delimiter="|")) == ["a,b"]
    with pytest.raises(ConfigError, match=r"one column alone: say `delimiter: …`.*columns: prompt\|b"):
        train(tmp_path / "e.csv", prompt="prompt")
    # As many commas as semicolons: a comma.
    (tmp_path / "e.csv").write_text('prompt,"a;b"\nc,d\n')
    assert train(tmp_path / "e.csv")[0].meta == {"a;b": "d"}


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{**row, "meta": {"k": i}, "n": i} for i, row in enumerate(ROWS * 5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=4)
    data = dataset(tmp_path / "d.parquet").examples("train")
    assert len(data) == 15
    for i in (14, 0, 7, 3, 4, 0):
        assert data[i].prompt == rows[i]["prompt"] and data[i].responses == tuple(rows[i]["responses"])
        assert data[i].meta == {"k": i, "n": i} and data[i].id == f"d.parquet:{i + 1}"
    few = dataset(tmp_path / "d.parquet", meta=("n",), prompt="{prompt}!")
    assert few.examples("train")[4].meta == {"n": 4}
    assert few._tables("train")[0]._only == ["prompt", "responses", "scores", "n"]  # type: ignore[attr-defined]
    unread = dataset(tmp_path / "d.parquet").examples("train")
    pq.write_table(pa.Table.from_pylist(rows[:3]), tmp_path / "d.parquet")
    with pytest.raises(ConfigError, match="has changed"):
        unread[0]


def test_parquet_holds_few_row_groups(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("rlalign_plugin_dataset.parquet_files.HELD_BYTES", 2000)
    rows = [{"prompt": "x" * 100, "n": i} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=5)
    task = dataset(tmp_path / "d.parquet")
    data = task.examples("train")
    assert [e.meta["n"] for e in data] == list(range(50))
    (table,) = task._tables("train")
    assert 1 <= len(table._held_groups) <= 4  # type: ignore[attr-defined]


def test_parquet_without_its_library(tmp_path, monkeypatch):
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"`pyarrow` is not installed.*pip install pyarrow"):
        train(tmp_path / "d.parquet")


def test_a_broken_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"d\.parquet: not a Parquet file"):
        train(tmp_path / "d.parquet")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@ONCE
@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": text, "responses": st.lists(text, min_size=1, max_size=3)}),
        min_size=1,
    )
)
def test_round_trip_of_json(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("rlalign_plugin_dataset.json_files.WINDOW_BYTES", 7)
    for name, ascii_only in (("a.jsonl", True), ("b.jsonl", False)):
        body = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
        (tmp_path / name).write_text(body, encoding="utf-8", newline="")
        found = train(tmp_path / name)
        assert [(e.prompt, list(e.responses)) for e in found] == [(r["prompt"], r["responses"]) for r in rows]
    (tmp_path / "c.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    found = train(tmp_path / "c.json")
    assert prompts(found) == [r["prompt"] for r in rows]
    lines = (tmp_path / "c.json").read_text(encoding="utf-8").split("\n")
    assert all(lines[int(e.id.rpartition(":")[2]) - 1] == " {" for e in found)


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@ONCE
@given(rows=st.lists(st.tuples(cell, cell, st.integers(0, 9)), min_size=1))
def test_round_trip_of_csv(tmp_path, rows):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["prompt", "other", "n"])
    writer.writerows(rows)
    (tmp_path / "d.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
    found = train(tmp_path / "d.csv", prompt="{prompt}")
    assert [(e.prompt, e.meta["other"], e.meta["n"]) for e in found] == [(p, o, str(n)) for p, o, n in rows]


# -- splits -----------------------------------------------------------------------------------------------


def test_one_file_a_split(tmp_path):
    for name in ("train", "validation", "test-00000-of-00002", "test-00001-of-00002", "extra"):
        jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("no data")
    task = dataset(tmp_path)
    assert prompts(task.examples("val")) == prompts(task.examples("validation")) == ["validation"]
    assert prompts(task.examples("test")) == ["test-00000-of-00002", "test-00001-of-00002"]
    assert prompts(task.examples("extra")) == ["extra"]
    assert task.examples("test")[1].id == "test-00001-of-00002.jsonl:1"
    with pytest.raises(ConfigError, match=r"has no split `held-out` \(splits: extra, test, train, val\)"):
        task.examples("held-out")


def test_a_folder_a_split_and_the_layout_of_the_hub(tmp_path):
    for name in ("train/a.csv", "train/b.csv", "dev/c.csv"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text(f"prompt\n{name}\n")
    task = dataset(tmp_path / "one")
    assert prompts(task.examples("train")) == ["train/a.csv", "train/b.csv"]
    assert prompts(task.examples("val")) == ["dev/c.csv"]
    (tmp_path / "two/data").mkdir(parents=True)
    jsonl(tmp_path / "two/data/train-00000-of-00001.jsonl", [{"prompt": "x"}])
    jsonl(tmp_path / "two/data/my_test.jsonl", [{"prompt": "y"}])
    (tmp_path / "two/dataset_infos.json").write_text("{}")
    assert prompts(dataset(tmp_path / "two").examples("test")) == ["y"]


def test_one_file_of_another_name_is_training_data(tmp_path):
    jsonl(tmp_path / "grow-1.jsonl", [{"prompt": "x"}])
    assert prompts(train(tmp_path)) == ["x"]
    with pytest.raises(ConfigError, match=r"no split `val`.*splits: \{train: 0\.9, val: 0\.1\}"):
        dataset(tmp_path).examples("val")


def test_named_files(tmp_path):
    for name in ("a-1.jsonl", "a-2.jsonl", "b.jsonl"):
        jsonl(tmp_path / name, [{"prompt": name}])
    task = dataset(tmp_path, splits={"train": "a-*.jsonl", "val": ("b.jsonl", "a-1.jsonl")})
    assert prompts(task.examples("train")) == ["a-1.jsonl", "a-2.jsonl"]
    assert prompts(task.examples("val")) == ["b.jsonl", "a-1.jsonl"]
    with pytest.raises(
        ConfigError, match=r"no file `c\.jsonl`; did you mean `[ab].*\.jsonl`\? \(there are: a-1"
    ):
        dataset(tmp_path, splits={"train": "c.jsonl"}).examples("train")
    with pytest.raises(ConfigError, match="within"):
        dataset(tmp_path, splits={"train": str(tmp_path / "b.jsonl")}).examples("train")


def test_named_files_beside_a_file(tmp_path):
    """As most people write it: `path` is what is learned from, and `splits` names the rest."""
    for name in ("a.jsonl", "b.jsonl", "more/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        jsonl(tmp_path / name, [{"prompt": name}])
    task = dataset(tmp_path / "a.jsonl", splits={"val": "b.jsonl", "test": "more/*.jsonl"})
    found = {split: prompts(task.examples(split)) for split in ("train", "val", "test")}
    assert found == {"train": ["a.jsonl"], "val": ["b.jsonl"], "test": ["more/c.jsonl"]}
    task = dataset(tmp_path / "a.jsonl", splits={"train": ("a.jsonl", "b.jsonl"), "val": "more/c.jsonl"})
    assert prompts(task.examples("train")) == ["a.jsonl", "b.jsonl"]
    with pytest.raises(
        ConfigError, match=r"a\.jsonl: `path` is a file and `splits` says that `train` is another"
    ):
        dataset(tmp_path / "a.jsonl", splits={"train": "b.jsonl"}).examples("train")
    with pytest.raises(ConfigError, match=r"no file `d\.jsonl`.*there are: a\.jsonl, b\.jsonl"):
        dataset(tmp_path / "a.jsonl", splits={"val": "d.jsonl"}).examples("train")


def test_one_split_in_two_formats(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"prompt": "x"}])
    (tmp_path / "train.csv").write_text("prompt\nx\n")
    with pytest.raises(
        ConfigError, match=r"as \.csv and as \.jsonl; say which.*splits: \{train: train\.csv\}"
    ):
        train(tmp_path)


def test_shares(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"id": i, "prompt": f"p{i}"} for i in range(2000)])
    task = dataset(path, splits={"train": 0.8, "val": 0.1})
    training, val = (prompts(task.examples(split)) for split in ("train", "val"))
    assert not set(training) & set(val)
    assert abs(len(training) - 1600) < 80 and abs(len(val) - 200) < 60  # the rest belongs to nobody
    assert prompts(task.examples("validation")) == val
    everything = dataset(path, splits={"train": 0.7, "val": 0.2, "test": 0.1})
    assert sum(len(everything.examples(s)) for s in ("train", "val", "test")) == 2000
    # The first share is what it is, however the rest is cut.
    assert prompts(everything.examples("train")) == prompts(
        dataset(path, splits={"train": 0.7}).examples("train")
    )


def test_shares_are_of_the_training_data(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"prompt": f"p{i}"} for i in range(200)])
    jsonl(tmp_path / "test.jsonl", [{"prompt": "t"}])
    task = dataset(tmp_path, splits={"train": 0.5, "val": 0.5})
    assert len(task.examples("train")) + len(task.examples("val")) == 200
    assert prompts(task.examples("test")) == ["t"]
    (tmp_path / "train.jsonl").unlink()
    jsonl(tmp_path / "val.jsonl", [{"prompt": "t"}])
    with pytest.raises(ConfigError, match="shares are of `train`, and there is none"):
        dataset(tmp_path, splits={"train": 0.5}).examples("train")


def test_a_share_that_gets_nothing(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(ConfigError, match=r"`splits: \{val: 0\.0001\}` got none of 2 rows; ") as caught:
        dataset(path, splits={"train": 0.9, "val": 0.0001}).examples("val")
    for way in ("more rows", "a larger share", "`splits: {val: FILE}`", "`evaluate: {split: train}`"):
        assert way in str(caught.value)


@ONCE
@given(
    ids=st.lists(st.text("abc0123456789", min_size=1, max_size=6), unique=True, min_size=1, max_size=30),
    data=st.data(),
)
def test_the_order_of_rows_never_matters_to_a_split(tmp_path, ids, data):
    """Also not which other rows there are: a row's split follows from its id alone."""
    order = data.draw(st.permutations(ids))
    shares = {"train": 0.5, "val": 0.3, "test": 0.2}
    for name, listed in (("a", ids), ("b", order), ("c", order[: len(order) // 2 + 1])):
        jsonl(tmp_path / f"{name}.jsonl", [{"id": i, "prompt": "same for all"} for i in listed])
    found: dict[str, dict[str, str]] = {}
    for name in "abc":
        task = dataset(tmp_path / f"{name}.jsonl", splits=shares)
        parts = task._index("train")
        found[name] = {e.id: split for split, examples in parts.items() for e in examples}
    assert found["a"] == found["b"]
    assert found["c"].items() <= found["a"].items()
    assert all(split == split_by_share(i, shares) for i, split in found["a"].items())


def test_without_ids_a_prompt_is_in_one_split_only(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": f"p{i % 20}", "responses": [str(i)]} for i in range(200)])
    task = dataset(path, splits={"train": 0.5, "val": 0.5})
    assert not set(prompts(task.examples("train"))) & set(prompts(task.examples("val")))


def test_the_hash_is_the_same_everywhere():
    shares = {"train": 0.5, "val": 0.5}
    assert [split_by_share(str(i), shares) for i in range(8)] == FIRST_EIGHT


FIRST_EIGHT = ["val", "val", "train", "val", "train", "val", "train", "val"]


def test_limit(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": str(i)} for i in range(100)] + [["no row"]])
    assert prompts(train(path, limit=3)) == ["0", "1", "2"]
    task = dataset(path, limit=5, splits={"train": 0.5, "val": 0.5})
    both = [prompts(task.examples(s)) for s in ("train", "val")]
    whole = dataset(path, splits={"train": 0.5, "val": 0.5}, bad_rows="skip")
    with pytest.warns(UserWarning, match="1 of 101 rows left out"):
        assert both == [prompts(whole.examples(s))[:5] for s in ("train", "val")]


# -- lazy -------------------------------------------------------------------------------------------------


def test_rows_are_read_when_asked_for(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": str(i)} for i in range(50)])
    data = dataset(path).examples("train")
    parsed = []
    monkeypatch.setattr(json, "loads", lambda text, plain=json.loads: parsed.append(text) or plain(text))
    assert data[7].prompt == "7" and data[-1].prompt == "49" and len(parsed) == 2
    assert prompts(data[3:6]) == ["3", "4", "5"]
    with pytest.raises(IndexError):
        data[50]
    assert dataset(path).examples("train") is not data


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    task = dataset(path)
    data = task.examples("train")
    assert task.examples("train") is data
    jsonl(path, [{"prompt": "c"}, {"prompt": "dd"}])
    with pytest.raises(ConfigError, match=r"d\.jsonl: the file has changed since it was first read"):
        data[0]
    with pytest.raises(ConfigError, match="has changed"):
        task.fingerprint("train")
    path.unlink()
    with pytest.raises(ConfigError, match="it was there when the run began"):
        data[0]


def test_fingerprint(tmp_path):
    one = jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    (tmp_path / "elsewhere").mkdir()
    same = jsonl(tmp_path / "elsewhere/d.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    other = jsonl(tmp_path / "elsewhere/e.jsonl", [{"prompt": "b"}, {"prompt": "a"}])
    first = dataset(one).fingerprint("train")
    assert dataset(same).fingerprint("train") == first
    assert dataset(other).fingerprint("train") != first
    assert dataset(one, prompt="{prompt}!").fingerprint("train") != first
    halves = dataset(one, splits={"train": 0.5, "val": 0.5})
    assert halves.fingerprint("train") != halves.fingerprint("val")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_memory_of_two_hundred_thousand_long_rows(tmp_path, kind):
    """200,000 rows of 1,000 words (1.2 GB): what is held after the start is where they stand."""
    import subprocess
    import sys

    path = tmp_path / f"d.{kind}"
    body = " ".join(f"word{i:02d}"[:6] for i in range(850))
    with path.open("w") as file:
        if kind == "csv":
            file.write("id,prompt,responses\n")
        if kind == "json":
            file.write("[")
        for i in range(200_000):
            if kind == "csv":
                file.write(f'{i},"{i}, {body}",yes\n')
            else:
                row = f'{{"id": {i}, "prompt": "{i} {body}", "responses": ["yes"]}}'
                file.write(row + ("\n" if kind == "jsonl" else "]" if i == 199_999 else ",\n"))
    script = f"""
import resource, time, sys
from pathlib import Path
from rlalign_plugin_dataset import Dataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
task = Dataset(Dataset.Config(path=Path({str(path)!r}), splits={{"train": 0.99, "val": 0.01}}, join=""))
data = task.examples("train")
scanned = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
now = int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])
started = time.perf_counter()
for i in range(0, len(data), 50):
    assert data[i].prompt.startswith(data[i].id)
print(len(data), before, peak, now, scanned, time.perf_counter() - started)
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    count, before, peak, now, scanned, _ = map(float, shown.split())
    print(kind, shown)
    assert abs(count - 198_000) < 500
    assert now - before < 100_000, "kilobytes held"
    assert peak - before < 100_000, "kilobytes at most"
    assert scanned < 120


# -- what can be wrong --------------------------------------------------------------------------------------


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(path, **options).examples("train")


def test_no_such_file(tmp_path):
    jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    refused(tmp_path / "dta.jsonl", r"no such file or folder; did you mean `data\.jsonl`")
    refused(tmp_path / "no/d.jsonl", "no such file")
    (tmp_path / "d.data").write_text("x")
    refused(tmp_path / "d.data", r"cannot tell what `\.data` files hold; there are \.jsonl")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no data files")


def test_empty_files(tmp_path):
    for name, body in (("a.jsonl", ""), ("a.csv", ""), ("a.json", "")):
        (tmp_path / name).write_text(body)
        refused(tmp_path / name, f"{name}: the file is empty")
    (tmp_path / "b.jsonl").write_text("\n\n")
    refused(tmp_path / "b.jsonl", "b.jsonl: no rows")
    (tmp_path / "b.csv").write_text("prompt,b\n")
    refused(tmp_path / "b.csv", "b.csv: no rows")
    (tmp_path / "b.json").write_text(" []")
    refused(tmp_path / "b.json", "b.json: no rows")


def test_bad_rows_are_named_by_file_and_line(tmp_path):
    path = tmp_path / "d.jsonl"
    lines = [
        b'{"prompt": "a"}',
        b"",
        b'{"prompt": ',
        b'["prompt"]',
        b'{"prompt": 3}',
        b'{"x": 1}',
        b'{"prompt": "\xff"}',
    ]
    path.write_bytes(b"\n".join([*lines, b'{"prompt": null}', b'{"prompt": "z"}']))
    with pytest.raises(ConfigError) as caught:
        train(path)
    said = str(caught.value)
    assert "d.jsonl: 6 of 8 rows cannot be used" in said and "`bad_rows: skip`" in said
    assert "d.jsonl:3: not valid JSON" in said
    assert "d.jsonl:4: expected an object {…}, found a list" in said
    assert "d.jsonl:5: `prompt` is a number, expected text" in said
    assert "d.jsonl:6: no column `prompt`" in said
    assert "d.jsonl:7: not UTF-8: byte 0xff at place 13" in said
    assert "and 1 more" in said
    with pytest.warns(UserWarning, match=r"6 of 8 rows left out:\n  d\.jsonl:3"):
        found = train(path, bad_rows="skip")
    assert prompts(found) == ["a", "z"] and [e.id for e in found] == ["d.jsonl:1", "d.jsonl:9"]
    path.write_text('{"prompt": 1}\n{"prompt": 2}\n')
    refused(path, "none of 2 rows can be used", bad_rows="skip")
    path.write_text("prompt,b\nc,d\n")
    refused(path, r"d\.jsonl:1: not valid JSON: .*; no row is sound")


def test_bad_csv(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b'prompt,b\n"one\nline",1\ntoo,many,fields\nfew\n"a"b,1\ncaf\xe9,1\nlast,1\n')
    with pytest.raises(ConfigError) as caught:
        train(path)
    said = str(caught.value)
    assert "d.csv:4: 3 fields where the header has 2" in said and "d.csv:5: 1 fields" in said
    assert "d.csv:6: not valid CSV" in said and "d.csv:7: not UTF-8: byte 0xe9 on line 7" in said
    with pytest.warns(UserWarning, match="4 of 6 rows left out"):
        assert prompts(train(path, bad_rows="skip")) == ["one\nline", "last"]
    path.write_text('prompt,b\none,1\n"two,1\nthree,1\n')
    refused(path, r"d\.csv:3: a quote opens in this row and is never closed", bad_rows="skip")
    path.write_text("prompt,prompt\na,b\n")
    refused(path, "the header names `prompt` twice")


def test_a_broken_json_list(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[{"prompt": "a"},\n {"prompt": }]')
    refused(path, r"d\.json:2: not valid JSON")
    path.write_text('[{"prompt": "a"}\n {"prompt": "b"}]')
    refused(path, r"d\.json:2: not valid JSON: expected `,` or `\]`")
    path.write_text('[{"prompt": "a"},\n {"prompt": "b"}')
    refused(path, r"d\.json:2: not valid JSON: expected `,` or `\]`")
    path.write_text('[{"prompt": "a"},\n {"prompt": "b')
    refused(path, r"d\.json:2: not valid JSON: Unterminated string")
    path.write_text('[{"prompt": "a"},\n]')
    refused(path, r"d\.json:2: not valid JSON")
    path.write_text('[{"prompt": "a"},\n 3]')
    refused(path, r"d\.json:2: expected an object")


def test_duplicate_ids(tmp_path):
    rows = [{"id": i, "prompt": str(n)} for n, i in enumerate([1, 2, 1, 3, 2])]
    path = jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(ConfigError, match=r"2 of 5 rows") as caught:
        train(path)
    assert "d.jsonl:3: the id `1` is that of d.jsonl:1 too" in str(caught.value)
    with pytest.warns(UserWarning, match="2 of 5 rows left out"):
        assert prompts(train(path, bad_rows="skip")) == ["0", "1", "3"]
    assert [e.id for e in train(path, id="{id}-{prompt}")] == ["1-0", "2-1", "1-2", "3-3", "2-4"]
    for wrong in (None, "", True, 1.5, ["x"]):
        refused(jsonl(tmp_path / "w.jsonl", [{"id": wrong, "prompt": "p"}]), "expected an id")


def test_missing_columns(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"question": "a", "answer": "b"}])
    refused(
        path,
        r"which column is the prompt\? Say `prompt: question`, and `responses: answer` to .*question, answer\)",
    )
    said = r"`prompt` names a column `questoin`, and there is none; did you mean `question`\?"
    refused(path, said + r" \(columns: question, answer\)", prompt="questoin")
    refused(path, "`prompt` names a column `q`", prompt="Q: {q}")
    refused(
        path,
        "`responses` names a column `anser`.*did you mean `answer`",
        prompt="question",
        responses="anser",
    )
    refused(path, "`scores` names a column `score`", prompt="question", responses="answer", scores="score")
    refused(path, "`meta` names a column `x`", prompt="question", meta=("x",))
    # A key that only some rows lack is a matter of those rows.
    jsonl(path, [{"question": "a"}, {"question": "b", "answer": "c"}])
    refused(path, r"1 of 2 rows.*\n  d\.jsonl:1: no column `answer`", prompt="question", responses="answer")


def test_words_that_would_run_together_are_said(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "I went to the", "responses": ["cinema."]}] * 3)
    with pytest.warns(UserWarning, match="in 3 of 3 rows the response follows the prompt without a space"):
        train(path, join=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(path, join=" ")[0].responses == (" cinema.",)
        assert train(path, join="")[0].responses == ("cinema.",)
        fine = [("to the ", "cinema"), ("to the", " cinema"), ("the end", "."), ("電影", "院"), ("", "a")]
        jsonl(path, [{"prompt": p, "responses": [r]} for p, r in fine])
        train(path, join=None)
