"""From columns to examples: every mapping, our own names, the hub, and whole runs."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlalign import ConfigError, Example
from rlalign.config.load import load_pipeline
from rlalign.testing import run, session
from rlalign_plugin_dataset import Dataset


def dataset(path: Path, **options: Any) -> Dataset:
    return Dataset(Dataset.Config(path=path, **{"join": "", **options}))


def rows(folder: Path, data: list[Any], **options: Any) -> list[Example]:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return list(dataset(path, **options).examples("train"))


def one(folder: Path, row: dict[str, Any], **options: Any) -> Example:
    (example,) = rows(folder, [row], **options)
    return example


def bad(folder: Path, row: dict[str, Any], message: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        one(folder, row, **options)


# -- prompts ----------------------------------------------------------------------------------------------


def test_templates(tmp_path):
    row = {"q": "why?", "n": 3, "x": 0.5, "in": {"text": "deep"}, "a.b": "dotted"}
    example = one(tmp_path, row, prompt="{{{n}}} {q} {x} {in.text} {a.b}\n")
    assert example.prompt == "{3} why? 0.5 deep dotted\n"
    assert example.meta == row  # what a template uses stays available
    assert one(tmp_path, row, prompt="in.text").prompt == "deep"
    for wrong in ("{q!r}", "{q:>3}", "{}", "{q"):
        with pytest.raises(ValidationError):
            Dataset.Config(path=tmp_path, prompt=wrong)
    bad(tmp_path, {"q": None}, "`q` is nothing", prompt="{q}")
    bad(tmp_path, {"q": True}, "`q` is true or false, expected text", prompt="{q}")
    bad(tmp_path, {"q": [1]}, "`q` is a list, expected text", prompt="{q}")
    bad(tmp_path, {"q": 3}, "`q` is a number, expected text or a list of messages", prompt="q")


USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def test_chats(tmp_path):
    chat = [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]
    for options in ({"chat": "messages"}, {}):
        example = one(tmp_path, {"messages": chat, "source": "web"}, **options)
        assert (example.prompt, example.responses, example.meta) == (chat[:-1], ("a",), {"source": "web"})
        example = one(tmp_path, {"messages": chat[:-1]}, **options)
        assert (example.prompt, example.responses) == (chat[:-1], ())
    example = one(tmp_path, {"m": chat[:2], "r": ["x", "y"]}, chat="m", responses="r")
    assert (example.prompt, example.responses) == (chat[:2], ("x", "y"))
    assert one(tmp_path, {"m": chat, "score": 0.5}, chat="m", scores="score").scores == (0.5,)
    assert one(tmp_path, {"prompt": [USER]}).prompt == [USER]
    assert one(tmp_path, {"prompt": [USER], "responses": ["x"]}, join=" ").responses == ("x",)
    for wrong, why in (
        ([], "an empty list"),
        ("u", "is text, expected a list of messages"),
        ([{"by": "human", "text": "x"}], "message 1 has `by`, `text`, expected `role` and `content`"),
        ([USER, {"role": 1, "content": "x"}], "message 2"),
        ([USER, "x"], "message 2 is text, expected an object with `role` and `content`"),
        ([ASSISTANT], "an answer and no prompt"),
        ([USER, {"role": "assistant", "content": [1]}], "the content of a message is a list"),
    ):
        bad(tmp_path, {"m": wrong}, why, chat="m")


def test_a_chat_in_csv(tmp_path):
    (tmp_path / "d.csv").write_text('messages\n"' + json.dumps([USER, ASSISTANT]).replace('"', '""') + '"\n')
    (example,) = dataset(tmp_path / "d.csv").examples("train")
    assert (example.prompt, example.responses) == ([USER], ("a",))
    (tmp_path / "d.csv").write_text('prompt\n"' + json.dumps([USER]).replace('"', '""') + '"\n')
    (example,) = dataset(tmp_path / "d.csv").examples("train")
    assert example.prompt == [USER]


# -- responses ----------------------------------------------------------------------------------------------


def test_responses_and_scores(tmp_path):
    p = {"prompt": "p"}
    assert one(tmp_path, {**p, "r": "x"}, responses="r").responses == ("x",)
    example = one(tmp_path, {**p, "r": ["x", "y"], "s": [1, -2.5]}, responses="r", scores="s")
    assert (example.responses, example.scores) == (("x", "y"), (1.0, -2.5))
    columns = {"a": "x", "b": "y", "sa": 1, "sb": True}
    both = {"responses": ("a", "b"), "scores": ("sa", "sb")}
    assert one(tmp_path, {**p, **columns}, **both).scores == (1.0, 1.0)
    # A response that is not there goes with its score.
    example = one(tmp_path, {**p, **columns, "a": None, "sa": None}, **both)
    assert (example.responses, example.scores) == (("y",), (1.0,))
    assert one(tmp_path, {**p, "r": [{"role": "assistant", "content": "x"}]}, responses="r").responses == (
        "x",
    )
    assert one(tmp_path, {**p, "label": False, "r": "x"}, responses="r", scores="label").scores == (0.0,)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"r": ["x", "y"], "s": [1]}, "2 responses and 1 scores"),
        ({"r": ["x"], "s": [1, 2]}, "1 responses and 2 scores"),
        ({"r": ["x"], "s": [None]}, "`s`: a score is nothing"),
        ({"r": ["x"], "s": ["good"]}, "`s`: expected a number, found 'good'"),
        ({"r": ["x"], "s": ["nan"]}, "`s`: a score is nan"),
        ({"r": ["x"], "s": ["true"]}, "`s`: expected a number, found 'true'"),
        ({"r": ["x"], "s": [float("nan")]}, "`s`: a score is nan"),
        ({"r": ["x"], "s": float("inf")}, "`s`: a score is inf"),
        ({"r": ["x", 3.5], "s": [1, 2]}, "`r` holds a number, expected text"),
        ({"r": ["x", True], "s": [1, 2]}, "`r` holds true or false, expected text"),
        ({"r": ["x", None], "s": [1, 2]}, "`r` holds a response that is nothing"),
        ({"r": None, "s": 1}, "no response in `r`"),
        ({"r": [], "s": []}, "`r` is an empty list"),
        ({"r": {"t": "x"}, "s": 1}, "`r` is an object, expected text"),
    ],
)
def test_bad_responses(tmp_path, row, why):
    bad(tmp_path, {"prompt": "p", **row}, f"d.jsonl:1: {why}", responses="r", scores="s")


def test_all_columns_empty(tmp_path):
    bad(tmp_path, {"prompt": "p", "a": None, "b": None}, "no response in `a` and `b`", responses=("a", "b"))


def test_finished(tmp_path):
    row = {"prompt": "p", "responses": ["x", "y"], "f": [True, False]}
    assert one(tmp_path, row, finished="f").finished == (True, False)
    assert one(tmp_path, {**row, "responses": "x", "f": False}, finished="f").finished == (False,)
    for wrong in ([True], [1, 0], "yes", None):
        bad(
            tmp_path, {**row, "f": wrong}, "`f`: expected true or false for each of 2 responses", finished="f"
        )


def test_finished_beside_a_response_that_is_not_there(tmp_path):
    """Said of all columns, it goes as scores do; it may be said of those alone that are there."""
    row = {"prompt": "p", "a": "x", "b": None, "c": "y"}
    options = {"responses": ("a", "b", "c"), "finished": "f"}
    for said in ([True, True, False], [True, None, False], [True, False]):
        example = one(tmp_path, {**row, "f": said}, **options)
        assert (example.responses, example.finished) == (("x", "y"), (True, False))
    assert one(tmp_path, {**row, "c": None, "f": True}, **options).finished == (True,)
    for wrong in ([True], [True] * 4, [True, False, None], True):
        bad(tmp_path, {**row, "f": wrong}, "expected true or false for each of 2 responses", **options)


def test_csv_cells(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('prompt,a,b,sa,sb,f\np,x,,1e-1,,true\nq,x,y,TRUE,2,"[1]"\n')
    options: dict[str, Any] = {"responses": ("a", "b"), "scores": ("sa", "sb")}
    first, second = dataset(path, **options).examples("train")
    assert (first.responses, first.scores) == (("x",), (0.1,))
    assert (second.responses, second.scores) == (("x", "y"), (1.0, 2.0))
    with pytest.raises(ConfigError, match=r"d\.csv:3: `f`: expected true or false for each of 2"):
        dataset(path, **options, finished="f").examples("train")
    path.write_text("prompt,a,sa\np,x,good\nq,x,nan\n")
    with pytest.raises(ConfigError) as caught:
        dataset(path, responses="a", scores="sa").examples("train")
    assert "d.csv:2: `sa`: expected a number, found 'good'" in str(caught.value)
    assert "d.csv:3: `sa`: a score is nan" in str(caught.value)


def test_pairs(tmp_path):
    for options in ({}, {"chosen": "chosen", "rejected": "rejected"}):
        example = one(tmp_path, {"prompt": "p", "chosen": "good", "rejected": "bad"}, **options)
        assert (example.responses, example.scores, example.meta) == (("good", "bad"), (1.0, 0.0), {})
    row = {"prompt": "p", "chosen": "good", "rejected": "bad", "sc": 0.9, "sr": 0.2}
    scored = {"chosen": "chosen", "rejected": "rejected", "scores": ("sc", "sr")}
    assert one(tmp_path, row, **scored).scores == (0.9, 0.2)
    chats = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{**ASSISTANT, "content": "b"}]}
    assert one(tmp_path, chats).responses == ("a", "b")
    whole = {"chosen": [SYSTEM, USER, ASSISTANT], "rejected": [SYSTEM, USER, {**ASSISTANT, "content": "b"}]}
    example = one(tmp_path, whole)
    assert (example.prompt, example.responses) == ([SYSTEM, USER], ("a", "b"))
    for rejected in (None, ""):
        bad(
            tmp_path,
            {"prompt": "p", "chosen": "x", "rejected": rejected},
            "`rejected` is empty: a pair needs two",
        )
    bad(tmp_path, {"prompt": "p", "chosen": 3.5, "rejected": "x"}, "`chosen` is a number")
    bad(tmp_path, {"chosen": "x", "rejected": "y"}, r"which column is the prompt\? .* the task `hh`")
    bad(
        tmp_path,
        {"chosen": [USER, ASSISTANT], "rejected": [SYSTEM, ASSISTANT]},
        "one conversation but for the last",
    )
    bad(tmp_path, {"prompt": "p", "chosen": [USER, ASSISTANT], "rejected": "x"}, "`chosen` holds 2 messages")
    bad(tmp_path, {"prompt": "p", "chosen": [USER], "rejected": "x"}, "the answer is by `user`")


def test_references_and_meta(tmp_path):
    row = {"prompt": "p", "r": ["x", "y"], "s": "z", "k": 1, "answers": {"text": ["q"]}}
    example = one(tmp_path, row, references=("r", "s", "answers.text"))
    assert example.meta == {"references": ["x", "y", "z", "q"], "k": 1, "answers": {"text": ["q"]}}
    assert one(tmp_path, row, meta=("k", "answers.text")).meta == {"k": 1, "answers.text": ["q"]}
    assert one(tmp_path, row, meta=()).meta == {}
    assert one(tmp_path, {**row, "r": None}, references="r").meta["references"] == []
    bad(tmp_path, {**row, "r": [1.5]}, "`r` holds a number", references="r")
    # One column can be both: references for metrics, responses to learn from.
    example = one(tmp_path, {"q": "p", "a": ["x", "y"]}, prompt="q", references="a", responses="a")
    assert example.responses == ("x", "y") and example.meta == {"references": ["x", "y"]}


def test_meta_is_what_json_can_hold(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    import datetime

    row = {"prompt": "p", "day": datetime.date(2026, 11, 20), "image": b"\x89PNG", "at": [datetime.time(1)]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    (example,) = dataset(tmp_path / "d.parquet").examples("train")
    assert example.meta == {"day": "2026-11-20", "at": ["01:00:00"]}
    json.dumps(example.meta)


def test_join(tmp_path):
    row = {"prompt": "I went to the", "responses": ["cinema", " park"]}
    assert one(tmp_path, row, join=" ").responses == (" cinema", " park")
    pair = {"prompt": "to the", "chosen": "x", "rejected": "y"}
    assert one(tmp_path, pair, join=" ").responses == (" x", " y")
    example = one(tmp_path, {**row, "references": "cinema"}, join=" ")
    assert example.meta["references"] == ["cinema"]  # what is compared is as it was written


# -- our own names --------------------------------------------------------------------------------------------

names = st.text("abcdefg", min_size=1, max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=5)}
)


@st.composite
def examples(draw: Any) -> Example:
    count = draw(st.integers(1, 3))
    score = st.floats(allow_nan=False, allow_infinity=False)
    return Example(
        id="",
        prompt=draw(st.text(max_size=8) | st.lists(message, min_size=1, max_size=3)),
        responses=tuple(draw(st.lists(st.text(max_size=8), min_size=count, max_size=count))),
        scores=tuple(draw(st.lists(score, min_size=count, max_size=count))),
        finished=tuple(draw(st.lists(st.booleans(), min_size=count, max_size=count))),
        meta=draw(st.dictionaries(names, plain, max_size=3)),
    )


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(examples(), min_size=1, max_size=4))
def test_what_a_run_wrote_is_read_back(tmp_path, made):
    made = [Example(**{**asdict(e), "id": f"{i}#1.0", "row": -1}) for i, e in enumerate(made)]
    keys = ("id", "prompt", "responses", "scores", "finished", "meta")
    found = rows(tmp_path, [{k: v for k, v in asdict(e).items() if k in keys} for e in made])
    assert [asdict(e) for e in found] == [asdict(e) for e in made]


TABLE = {"table": {"actions": ["a", "b", "end"], "end": "end", "steps": 4, "state": "previous"}}


def test_the_rows_of_a_real_run(tmp_path):
    """`grow` samples and scores; another run reads its file as it stands and learns from it."""
    pipeline = {
        "task": {"toy-numbers": {"size": 6}},
        "policy": TABLE,
        "rewards": ["length"],
        "phases": [
            {"name": "grow", "algorithm": "collect", "generation": {"samples": 3, "max_new_tokens": 4}},
            {
                "name": "improve",
                "task": {"from": "grow"},
                "responses": "logged",
                "rewards": None,
                "algorithm": "reinforce",
            },
        ],
        "train": {"passes": 1, "prompts": 6, "lr": 0.1},
    }
    first, _ = run(tmp_path / "one", pipeline)
    rows_file = first.path / "rows/grow-1.jsonl"
    read = list(dataset(rows_file).examples("train"))
    wanted = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert json.loads(json.dumps([asdict(e) for e in read])) == [{**row, "row": -1} for row in wanted]
    assert len(read) == 6 and all(len(e.responses) == 3 for e in read)
    again = {
        "task": {"dataset": {"path": str(rows_file), "join": ""}},
        "policy": TABLE,
        "algorithm": "reinforce",
        "responses": "logged",
        "train": {"passes": 3, "prompts": 3, "lr": 0.1},
        "evaluate": {"split": "train", "examples": 2, "use": ["length"]},
    }
    (tmp_path / "two").mkdir()
    finished, _ = run(tmp_path / "two", again)
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["reward/logged"] == pytest.approx(lines[1]["length"] - lines[1]["finished"])
    data = json.loads((finished.path / "lock.json").read_text())["data"]
    assert data["dataset/train"] == dataset(rows_file).fingerprint("train")


def test_in_a_pipeline_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/d.csv").write_text("question,answer\nq,a\nr,b\n")
    yaml = (
        "task: {dataset: {path: data/d.csv, prompt: 'Q: {question}', responses: answer, join: ''}}\n"
        "policy: {table: {actions: [a, b], steps: 1}}\nalgorithm: sft\ntrain: {passes: 1}\n"
    )
    (tmp_path / "p.yaml").write_text(yaml)
    pipeline = load_pipeline(tmp_path / "p.yaml")
    task = pipeline.phases[0].task.build()
    assert [e.prompt for e in task.examples("train")] == ["Q: q", "Q: r"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say `path`, for a file or folder, or `hub`"),
        ({"path": "d.jsonl", "hub": "x/y"}, "say `path`"),
        ({"path": "d.jsonl", "revision": "main"}, "belong to `hub`"),
        ({"path": "d.jsonl", "chosen": "c"}, "a pair needs both"),
        ({"path": "d.jsonl", "chosen": "c", "rejected": "r", "responses": "x"}, "not both"),
        ({"path": "d.jsonl", "prompt": "c", "chat": "r"}, "not both"),
        ({"path": "d.jsonl", "splits": {"train": 0.5, "val": "x.jsonl"}}, "either shares or names"),
        ({"path": "d.jsonl", "splits": {"train": 0.8, "val": 0.4}}, "add up to 1.2, more than 1"),
        ({"path": "d.jsonl", "splits": {"train": 1.5}}, "at most 1"),
        ({"path": "d.jsonl", "prompt": "{}"}, "a template names its columns"),
        ({"path": "d.jsonl", "limit": 0}, "more than 0"),
        ({"path": "d.jsonl", "bad_rows": "drop"}, "'error' or 'skip'"),
        ({"path": "d.jsonl", "promt": "x"}, "did you mean `prompt`"),
    ],
)
def test_options_are_checked(tmp_path, options, message):
    pipeline = {"task": {"dataset": options}, "policy": TABLE, "algorithm": "sft", "train": {"passes": 1}}
    with pytest.raises(ConfigError, match=message):
        session(tmp_path, pipeline, {})


def test_shares_of_one_are_whole(tmp_path):
    found = rows(tmp_path, [{"prompt": str(i)} for i in range(300)], splits={"train": 1})
    assert len(found) == 300
    thirds = {"train": 0.1, "val": 0.2, "test": 0.7}  # 0.1 + 0.2 + 0.7 is not 1 in floats
    path = tmp_path / "d.jsonl"
    assert sum(len(dataset(path, splits=thirds).examples(s)) for s in thirds) == 300


# -- the hub ----------------------------------------------------------------------------------------------------


class FakeSplit:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, data: list[dict[str, Any]]) -> None:
        self.data = data
        self.column_names = list(data[0])

    def __len__(self) -> int:
        return len(self.data)

    def select_columns(self, names: list[str]) -> FakeSplit:
        return FakeSplit([{n: row[n] for n in names} for row in self.data])

    def __iter__(self) -> Any:
        return iter(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index]


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append((path, options))
        if path == "no/such":
            raise FileNotFoundError("Couldn't find any data\nsecond line")
        if path == "bare/split":
            return FakeSplit([{"prompt": "b"}])
        data = [{"text": f"t{i}", "label": i % 2} for i in range(40)]
        return {"train": FakeSplit(data[:30]), "validation": FakeSplit(data[30:])}

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def hub(**options: Any) -> Dataset:
    return Dataset(Dataset.Config(**{"hub": "some/data", "prompt": "text", **options}))


def test_a_dataset_on_the_hub(fake_hub):
    task = hub(subset="en", revision="abc")
    assert [e.prompt for e in task.examples("train")] == [f"t{i}" for i in range(30)]
    assert task.examples("val")[0].id == "some/data/validation:1" and task.examples("val")[0].meta == {
        "label": 0
    }
    assert fake_hub == [("some/data", {"name": "en", "revision": "abc"})]
    assert task.fingerprint("train") == hub(subset="en", revision="abc").fingerprint("train")
    assert task.fingerprint("train") != task.fingerprint("val")
    assert hub(meta=()).examples("train")[3].meta == {}
    shares = hub(splits={"train": 0.5, "val": 0.5})
    assert len(shares.examples("train")) + len(shares.examples("val")) == 30
    named = hub(splits={"train": ("train", "val"), "held-out": "validation"})
    assert len(named.examples("train")) == 40 and len(named.examples("held-out")) == 10
    assert [e.prompt for e in hub(hub="bare/split", prompt="prompt").examples("train")] == ["b"]


def test_what_can_be_wrong_with_the_hub(fake_hub):
    with pytest.raises(
        ConfigError, match=r"no/such: cannot be loaded: FileNotFoundError: Couldn't find any data$"
    ):
        hub(hub="no/such").examples("train")
    with pytest.raises(
        ConfigError, match=r"no split `trian`; did you mean `train`\? \(splits: train, validation\)"
    ):
        hub(splits={"train": "trian"}).examples("train")
    with pytest.raises(ConfigError, match=r"has no split `test` \(splits: train, validation\)"):
        hub().examples("test")
    with pytest.raises(ConfigError, match=r"names a column `txt`.*did you mean `text`"):
        hub(prompt="txt").examples("train")


def test_the_hub_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"`datasets` is not installed.*pip install datasets"):
        hub().examples("train")


def test_the_real_library_on_a_folder(tmp_path, monkeypatch):
    """`load_dataset` takes a local folder as it takes an id; `save_to_disk` writes one that `path` reads."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets")
    data = [{"text": f"t{i}", "label": i % 2} for i in range(40)]
    (tmp_path / "repository").mkdir()
    for split, part in (("train", data[:30]), ("validation", data[30:])):
        body = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"repository/{split}.jsonl").write_text(body)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    task = hub(hub=str(tmp_path / "repository"))
    assert [e.prompt for e in task.examples("train")] == [f"t{i}" for i in range(30)]
    assert task.examples("val")[9].meta == {"label": 1}
    library.load_dataset(str(tmp_path / "repository")).save_to_disk(str(tmp_path / "saved"))
    read = Dataset(Dataset.Config(path=tmp_path / "saved", prompt="text"))
    assert [e.prompt for e in read.examples("val")] == [e.prompt for e in task.examples("val")]
    with pytest.raises(ConfigError, match="has its own splits"):
        Dataset(Dataset.Config(path=tmp_path / "saved", prompt="text", splits={"train": "x"})).examples(
            "train"
        )


@pytest.mark.parametrize(
    ("options", "row", "why"),
    [
        (
            {"score_range": (0, 1)},
            {"r": ["x", "y"], "s": [0.5, 1.5]},
            r"`s`: a score is 1.5, outside of \[0, 1\]",
        ),
        ({"score_range": (-1, 1)}, {"r": "x", "s": -2}, r"`s`: a score is -2, outside of \[-1, 1\]"),
        ({"empty_responses": "bad"}, {"r": ["x", " "], "s": [1, 0]}, "a response in `r` is empty"),
    ],
)
def test_what_an_option_calls_bad(options: Any, row: Any, why: str, tmp_path: Path) -> None:
    p = {"prompt": "p"}
    columns = {"responses": "r", "scores": "s"}
    assert len(one(tmp_path, {**p, **row}, **columns).responses) == (
        len(row["r"]) if isinstance(row["r"], list) else 1
    )
    with pytest.raises(ConfigError, match=why):
        one(tmp_path, {**p, **row}, **columns, **options)
