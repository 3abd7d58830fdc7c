"""Files of one text a line: alone, side by side, by split, in Latin-1."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlalign import ConfigError
from rlalign_plugin_dataset import Dataset


def dataset(path: Path, **options: Any) -> Dataset:
    return Dataset(Dataset.Config(path=path, **options))


def pairs(examples: Any) -> list[Any]:
    return [(e.prompt, e.meta.get("references")) for e in examples]


def test_a_text_file_is_a_column_of_lines(tmp_path):
    """A line ends in a line feed: what else breaks lines is part of a text."""
    (tmp_path / "d.txt").write_bytes("\ufeffone\r\n\ntwo\u2028 and\x85 \x0bthree\n\n".encode())
    found = dataset(tmp_path / "d.txt", prompt="text").examples("train")
    assert [(e.id, e.prompt) for e in found] == [
        ("d.txt:1", "one"),
        ("d.txt:3", "two\u2028 and\x85 \x0bthree"),
    ]
    with pytest.raises(ConfigError, match="Say `prompt: text`"):
        dataset(tmp_path / "d.txt").examples("train")
    task = dataset(tmp_path, splits={"train": "d.txt"}, prompt="text")
    assert len(task.examples("train")) == 2


def test_texts_beside_data_are_none(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    for name in ("README.txt", "train.txt", "LICENSE.txt.gz"):
        (tmp_path / name).write_text("b\n")
    assert [e.prompt for e in dataset(tmp_path).examples("train")] == ["a"]


MULTI = {
    "train.en": "A dog.\nA cat.\n",
    "train.de": "Ein Hund.\nEine Katze.\n",
    "val.en": "Snow.\n",
    "val.de": "Schnee.\n",
    "test_2016_flickr.en": "Rain.\n",
    "test_2016_flickr.de": "Regen.\n",
}


@pytest.fixture
def multi(tmp_path: Path) -> Path:
    """Files as Multi30k has them."""
    for name, text in MULTI.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "README.md").write_text("about")
    return tmp_path


LINES = {"en": "{split}.en.gz", "de": "{split}.de.gz"}


def test_files_side_by_side(multi):
    task = dataset(multi, lines=LINES, prompt="German of: {en}\n", references="de", meta=())
    found = {s: pairs(task.examples(s)) for s in ("train", "val", "test")}
    assert found == {
        "train": [("German of: A dog.\n", ["Ein Hund."]), ("German of: A cat.\n", ["Eine Katze."])],
        "val": [("German of: Snow.\n", ["Schnee."])],
        "test": [("German of: Rain.\n", ["Regen."])],
    }
    examples = task.examples("train")
    assert [e.id for e in reversed(examples)] == ["train.en.gz:2", "train.en.gz:1"]
    assert len({task.fingerprint(s) for s in ("train", "val", "test")}) == 3
    (multi / "train.de.gz").write_bytes(gzip.compress(b"Der Hund.\nEine Katze.\n"))
    assert dataset(multi, lines=LINES, prompt="en").fingerprint("train") != task.fingerprint("val")


def test_which_files_make_up_a_split(multi):
    task = dataset(
        multi, lines=LINES, prompt="en", splits={"train": ("train", "val"), "val": "test_2016_flickr"}
    )
    assert [e.prompt for e in task.examples("train")] == ["A dog.", "A cat.", "Snow."]
    assert [e.prompt for e in task.examples("val")] == ["Rain."]
    shared = dataset(multi, lines=LINES, prompt="en", splits={"train": 0.5, "held": 0.5})
    assert len(shared.examples("train")) + len(shared.examples("held")) == 2
    with pytest.raises(
        ConfigError, match=r"no split `vall`; did you mean `val`.*splits: test_2016_flickr, train, val"
    ):
        dataset(multi, lines=LINES, prompt="en", splits={"train": "vall"}).examples("train")


def test_one_pair_of_files(tmp_path):
    (tmp_path / "source.txt").write_text("a\n\nc\n\n")
    (tmp_path / "target.txt").write_text("x\ny\n\n\n")
    task = dataset(tmp_path, lines={"s": "source.txt", "t": "target.txt"}, prompt="s", references="t")
    assert pairs(task.examples("train")) == [("a", ["x"]), ("", ["y"]), ("c", [""])]


def test_files_that_do_not_belong_together(multi):
    (multi / "train.de.gz").write_bytes(gzip.compress(b"Ein Hund.\n"))
    said = r"train\.de\.gz has 1 lines and train\.en\.gz has more: .* belong together"
    with pytest.raises(ConfigError, match=said):
        dataset(multi, lines=LINES, prompt="en").examples("train")
    (multi / "val.de.gz").unlink()
    with pytest.raises(ConfigError, match=r"holds no file `val\.de\.gz`"):
        dataset(multi, lines=LINES, prompt="en").examples("train")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"a": "{split}.x", "b": "y"}, "either each name holds `{split}` once, or none does"),
        ({"a": "{split}/{split}.x"}, "either each name holds `{split}` once, or none does"),
        ({"a": ""}, "at least 1 character"),
    ],
)
def test_names_of_lines(tmp_path, lines, said):
    with pytest.raises(ValidationError, match=said):
        dataset(tmp_path, lines=lines)


def test_where_lines_are_not(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no file `\{split\}\.x`"):
        dataset(tmp_path, lines={"a": "{split}.x"}, prompt="a").examples("train")
    (tmp_path / "valid.x").write_text("a\n")
    said = r"no split `train` \(splits: val\); `splits: \{train: val\}` makes it of that one"
    with pytest.raises(ConfigError, match=said):
        dataset(tmp_path, lines={"a": "{split}.x"}, prompt="a").examples("train")
    task = dataset(tmp_path, lines={"a": "{split}.x"}, prompt="a", splits={"train": "val"})
    assert len(task.examples("train")) == 1
    (tmp_path / "d.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="`lines` names files in a folder, and this is none"):
        dataset(tmp_path / "d.txt", lines={"a": "d.txt"}, prompt="a").examples("train")
    with pytest.raises(ConfigError, match=r"lines: .*: give the name within"):
        dataset(tmp_path, lines={"a": str(tmp_path / "d.txt")}, prompt="a").examples("train")
    with pytest.raises(ValidationError, match="`lines` names files in the folder `path`"):
        Dataset.Config(hub="a/b", lines={"a": "d.txt"})


def test_latin_1(tmp_path):
    """As the sentences of the rt-polarity data are, where \\x85 is part of a text and ends no line."""
    (tmp_path / "d.pos").write_bytes(b"a clich\xe9d film\x85 and so on\n")
    (tmp_path / "d.neg").write_bytes(b"na\xefve\n")
    options = {"lines": {"text": "d.{split}"}, "splits": {"train": ("pos", "neg")}, "prompt": "text"}
    found = dataset(tmp_path, **options, encoding="latin-1").examples("train")
    assert [(e.id, e.prompt) for e in found] == [
        ("d.pos:1", "a clich\xe9d film\x85 and so on"),
        ("d.neg:1", "na\xefve"),
    ]
    with pytest.raises(
        ConfigError, match=r"(?s)d\.pos:1: not UTF-8: byte 0xe9 at place 8\n.*`encoding: windows"
    ):
        dataset(tmp_path, **options).examples("train")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", 'prompt,b\n"é, “ü”",c\n'),
        ("d.jsonl", '{"prompt": "é, “ü”", "b": "c"}\n'),
        ("d.json", '[\n{"prompt": "é, “ü”",\n"b": "c"}]'),
    ],
)
def test_windows_1252(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode("windows-1252"))
    task = dataset(tmp_path / name, encoding="windows-1252", meta=())
    assert [e.prompt for e in task.examples("train")] == ["é, “ü”"]
    (tmp_path / name).write_bytes(
        text.encode("windows-1252").replace(b"\xe9", b"\x81")
    )  # which is no character
    with pytest.raises(ConfigError, match="not WINDOWS-1252: byte 0x81"):
        dataset(tmp_path / name, encoding="windows-1252").examples("train")
