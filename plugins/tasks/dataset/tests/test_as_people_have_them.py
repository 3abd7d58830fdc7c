"""Files as people have them: each is read as it is, or by one option, or refused with what to do."""

from __future__ import annotations

import csv
import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError, Example
from rlalign_plugin_dataset import Dataset

QA = [{"question": f"Was ist {i}, ä?", "answer": f"Es ist {i}."} for i in range(3)]
SAID = [
    ("Was ist 0, ä?", ("Es ist 0.",)),
    ("Was ist 1, ä?", ("Es ist 1.",)),
    ("Was ist 2, ä?", ("Es ist 2.",)),
]
MAPPED = {"prompt": "question", "responses": "answer"}
USER, GOOD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
BAD = {**GOOD, "content": "bad"}


def train(path: Path, **options: Any) -> list[Example]:
    return list(Dataset(Dataset.Config(path=path, **{"join": "", **options})).examples("train"))


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def sheet(by: str = ";", more: str = "") -> str:
    return (
        "".join(
            f"{q}{by}{a}\r\n"
            for q, a in [("question", "answer"), *((r["question"], r["answer"]) for r in QA)]
        )
        + more
    )


INDEXED = enumerate(sheet().splitlines())
QUESTIONS: dict[str, tuple[str, bytes]] = {
    "Excel's CSV UTF-8 of a German": ("d.csv", ("\ufeff" + sheet()).encode()),
    "with empty rows at its end": ("d.csv", sheet(";", ";\r\n;\r\n").encode()),
    "with empty columns": ("d.csv", sheet().replace("\r\n", ";;\r\n").encode()),
    "tabs under the name of CSV": ("d.csv", sheet("\t").encode()),
    "pandas' index": ("d.csv", "".join(f"{i};{row}\n" for i, row in INDEXED).replace("0;", ";", 1).encode()),
    "a JSON list": ("d.json", json.dumps(QA, indent=1).encode()),
    "a JSON list under the name of JSON lines": ("d.jsonl", json.dumps(QA, indent=1).encode()),
    "a JSON list on one line": ("d.jsonl", json.dumps(QA).encode()),
    "packed JSON lines": ("d.jsonl.gz", gzip.compress(lines(*QA))),
    "packed in two parts": ("d.jsonl.gz", gzip.compress(lines(*QA[:2])) + gzip.compress(lines(QA[2]))),
    "a packed tape": ("d.jsonl.gz", gzip.compress(lines(*QA)) + bytes(512)),
    "a packed JSON list": ("d.json.GZ", gzip.compress(json.dumps(QA, indent=1).encode())),
    "packed CSV": ("d.csv.gz", gzip.compress(("\ufeff" + sheet()).encode())),
    "packed TSV": ("d.tsv.gz", gzip.compress(sheet("\t").encode())),
}  # fmt: skip


@pytest.mark.parametrize("case", QUESTIONS)
def test_questions_and_answers(tmp_path: Path, case: str) -> None:
    name, content = QUESTIONS[case]
    (tmp_path / name).write_bytes(content)
    found = train(tmp_path / name, **MAPPED)
    assert [(e.prompt, e.responses) for e in found] == SAID and all(e.meta == {} for e in found)
    with pytest.raises(ConfigError, match="Say `prompt: question`, and `responses: answer` to learn from it"):
        train(tmp_path / name)


PAIR = ([USER], ("good", "bad"), (1.0, 0.0))
READ: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "messages": ({"messages": [USER, GOOD]}, ([USER], ("good",), ())),
    "messages in parts": (
        {"messages": [USER, {**GOOD, "content": [{"type": "text", "text": "go"}, {"type": "text", "text": "od"}]}]},
        ([USER], ("good",), ()),
    ),
    "ShareGPT": (
        {"id": "x", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
        ([USER], ("good",), ()),
    ),
    "conversations of messages": ({"conversations": [USER, GOOD]}, ([USER], ("good",), ())),
    "pairs of texts": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, ("q", ("good", "bad"), (1.0, 0.0))),
    "pairs of whole chats": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
    "pairs of whole chats and the prompt": ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
    "pairs of answers to a chat": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
    "numbers as text": ({"prompt": "q", "responses": ["good"], "scores": ["0.5"]}, ("q", ("good",), (0.5,))),
    "answers that are numbers": ({"prompt": "2 + 2 =", "responses": 4}, ("2 + 2 =", ("4",), ())),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read_as_it_is(tmp_path: Path, case: str) -> None:
    row, wanted = READ[case]
    (tmp_path / "d.jsonl").write_bytes(lines(row))
    (example,) = train(tmp_path / "d.jsonl")
    assert (example.prompt, example.responses, example.scores) == wanted


def test_who_speaks_in_sharegpt(tmp_path: Path) -> None:
    turns = [
        ("system", "s"),
        ("human", "q"),
        ("gpt", "a"),
        ("human", "r"),
        ("observation", "o"),
        ("gpt", "good"),
    ]
    (tmp_path / "d.json").write_text(
        json.dumps([{"conversations": [{"from": f, "value": v} for f, v in turns]}])
    )
    (example,) = train(tmp_path / "d.json")
    assert [m["role"] for m in example.prompt] == ["system", "user", "assistant", "user", "tool"]
    assert example.responses == ("good",)


def test_pairs_of_whole_chats_in_csv(tmp_path: Path) -> None:
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["chosen", "rejected"], [json.dumps([USER, GOOD]), json.dumps([USER, BAD])]]
        )
    (example,) = train(tmp_path / "d.csv")
    assert (example.prompt, example.responses, example.scores) == PAIR


def test_a_pair_of_chats_beside_another_prompt(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(
        lines({"prompt": "z", "chosen": [USER, GOOD], "rejected": [USER, BAD]})
    )
    with pytest.raises(ConfigError, match="whole conversations, which do not hold the prompt in `prompt`"):
        train(tmp_path / "d.jsonl")


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "Excel's old CSV": (
        "d.csv", sheet().encode("cp1252"), "d.csv:2: not UTF-8: byte 0xe4 .*`encoding` says `windows-1252`"
    ),
    "JSON lines of Windows": ("d.jsonl", '{"prompt": "ä"}'.encode("cp1252"), "sound\n  files are read as UTF-8 unless"),
    "UTF-16": ("d.csv", sheet().encode("utf-16"), "UTF-16, and UTF-8 is read: `iconv -f UTF-16 -t UTF-8 d.csv"),
    "a note to Excel": ("d.csv", b"sep=;\r\n" + sheet().encode(), "d.csv:1: `sep=` is a note to Excel"),
    "a workbook": ("d.xlsx", b"PK", "a spreadsheet is not read; save it as `CSV UTF-8`"),
    "packed otherwise": ("d.jsonl.xz", lines(*QA), "`unxz -k d.jsonl.xz` unpacks it"),
    "packed Parquet": ("d.parquet.gz", lines(*QA), "Parquet is packed within; `gunzip -k d.parquet.gz`"),
    "gzip by its name alone": ("d.jsonl.gz", lines(*QA), "the packed file is damaged .*, or no gzip file"),
    "gzip that was cut": ("d.jsonl.gz", gzip.compress(lines(*QA))[:-9], "the packed file ends in its middle"),
    "gzip with a flipped bit": ("d.jsonl.gz", gzip.compress(lines(*QA))[:-8] + bytes(8), "the packed file is damaged"),
    "a pointer of Git LFS": ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "`git lfs pull`"),
    "no ending": ("data", lines(*QA), "what a file without an ending holds; there are .jsonl"),
    "objects over several lines": ("d.jsonl", b'{\n "prompt": "a"\n}', "an object has one line to itself"),
    "commas between lines": ("d.jsonl", b'{"prompt": "a"},\n{"prompt": "b"}', "without a comma between them"),
    "Python's quotes": ("d.jsonl", b"{'prompt': 'a'}", "JSON has double quotes: write rows by `json.dumps"),
    "rows within an object": ("d.json", b'{"data": [{"prompt": "a"}]}', "if `data` holds the rows, keep them alone"),
    "a list a line": ("d.jsonl", lines([USER, GOOD], [USER, GOOD]), r"more after the end of the list; a list a line\?"),
    "one column after the other": (
        "d.json", lines({"prompt": {"0": "a"}}), r"pandas writes rows by `df.to_json\(FILE, orient='records'"
    ),
    "a decimal comma": ("d.csv", b"prompt;responses;scores\na;b;0,5\n", "'0,5' with a decimal comma\n  numbers are"),
    "ids that stand twice": ("d.jsonl", lines({"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}), "or join two, "),
    "pairs without a prompt": ("d.jsonl", lines({"q": "a", "chosen": "b", "rejected": "c"}), "which column is the"),
    "messages with other keys": ("d.jsonl", lines({"messages": [{"speaker": "a"}]}), "message 1 has `speaker`"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_to_do(tmp_path: Path, case: str) -> None:
    name, content, said = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s){said}") as caught:
        train(tmp_path / name, **(MAPPED if "question" in content.decode("latin-1") else {}))
    assert name in str(caught.value)


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once")
    told = r"no data files .*; a\.txt: a folder's texts .* `splits: \{train: a\.txt\}`, or `lines`"
    with pytest.raises(ConfigError, match=told):
        train(tmp_path)


def test_a_field_that_is_missing_in_row_5000(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "responses": "a"} for i in range(6000)]
    del rows[4999]["responses"]
    (tmp_path / "d.jsonl").write_bytes(lines(*rows))
    with pytest.raises(
        ConfigError, match=r"1 of 6,000 rows.*\n  d\.jsonl:5000: no column `responses` \(it has: prompt\)"
    ):
        train(tmp_path / "d.jsonl")


def test_the_rows_of_a_run_are_read_without_a_warning(tmp_path: Path) -> None:
    """Their responses are as they were sampled, with or without a space."""
    row = {"prompt": "I went to the", "responses": ["cinema"], "meta": {"rlalign": {"same_tokens": [True]}}}
    (tmp_path / "d.jsonl").write_bytes(lines(row))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(tmp_path / "d.jsonl", join=None)[0].responses == ("cinema",)
