"""What the tasks share: samples, the hub, fingerprints, tokenizers, laziness, whole runs."""

from __future__ import annotations

import json
import sys
import tracemalloc
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from rlalign import ConfigError, Task
from rlalign.cli.commands import program
from rlalign.config.registry import Registry
from rlalign.testing import run
from rlalign_plugin_dataset.corpus import Corpus
from rlalign_plugin_dataset.lengths import Tokens
from rlalign_plugin_dialog_tasks import HH, TLDR, Comet, FaithDial, RedditComments, WizardOfWikipedia

END = "<|endoftext|>"
TASKS: dict[str, type[Corpus]] = {
    "hh": HH,
    "reddit-comments": RedditComments,
    "wizard-of-wikipedia": WizardOfWikipedia,
    "faithdial": FaithDial,
    "comet": Comet,
    "tldr": TLDR,
}
every = pytest.mark.parametrize("name", TASKS)
quiet = pytest.mark.filterwarnings("ignore:.*left out:UserWarning")


def sample(name: str, **options: Any) -> Corpus:
    cls = TASKS[name]
    return cls(cls.Config(sample=True, **options))  # type: ignore[call-arg]


# -- samples ------------------------------------------------------------------------------------------------


@every
def test_it_is_offered_by_name(name):
    loaded = Registry().load(name)
    assert loaded.cls is TASKS[name] and issubclass(loaded.cls, Task)
    assert loaded.installed is not None and loaded.installed.distribution == "rlalign-plugin-dialog-tasks"


@quiet
@every
def test_a_sample_holds_a_dozen_sound_rows(name):
    task = sample(name, bad_rows="error")
    found = {split: list(task.examples(split)) for split in task.splits()}
    assert {"train", "val", "test"} <= set(found) and all(found.values())
    ids = [e.id for split in ("train", "val", "test") for e in found[split]]
    assert len(ids) == len(set(ids)) >= 8
    for examples in found.values():
        for example in examples:
            assert example.meta["references"] and all(r.strip() for r in example.responses)
            assert len(example.scores) in (0, len(example.responses))
            json.dumps(example.meta)  # a run writes it down


@quiet
@every
def test_a_limit(name):
    task = sample(name, limit=1)
    assert all(1 <= len(task.examples(split)) <= 2 for split in task.splits())


@every
def test_options_say_where_the_data_is(name, tmp_path):
    with pytest.raises(ValidationError, match="say `path` or `sample: true`, not both"):
        sample(name, path=tmp_path)
    with pytest.raises(ConfigError, match=r"no such file or folder|give the folder"):
        TASKS[name](TASKS[name].Config(path=tmp_path / "x")).examples("train")


@quiet
@every
def test_check_and_a_run(name, tmp_path, monkeypatch):
    """A table learns the sample's responses by heart."""
    responses = [r for e in sample(name).examples("train") for r in e.responses]
    words = sorted({w for r in responses for w in r.split()} | {"<end>"})
    steps = max(len(r.split()) for r in responses) + 1
    pipeline = {
        "task": {name: {"sample": True}},
        "policy": {"table": {"actions": words, "end": "<end>", "steps": steps, "state": "step"}},
        "algorithm": "sft",
        "responses": "logged",
        "train": {"iterations": 3, "prompts": 4, "lr": 0.5},
        "evaluate": {
            "split": "train",
            "examples": 4,
            "use": ["held-out"],
            "generation": {"beams": 1, "greedy": True, "max_new_tokens": steps},
        },
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(pipeline))
    checked = CliRunner().invoke(program, ["check", str(tmp_path / "p.yaml")], catch_exceptions=False)
    assert checked.exit_code == 0 and name in checked.output
    finished, _ = run(tmp_path, pipeline)
    rows = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    before, after = (
        [r for r in rows if "eval/held-out/perplexity" in r][i]["eval/held-out/perplexity"] for i in (0, -1)
    )
    assert after < before
    lock = json.loads((finished.path / "lock.json").read_text())
    assert lock["data"][f"{name}/train"] == sample(name).fingerprint("train")


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    """A folder with a GPT-2 of one layer, not trained, that knows all words of a sample."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")

    def made(name: str) -> Path:
        task = sample(name)
        texts = [t for s in task.splits() for e in task.examples(s) for t in (str(e.prompt), *e.responses)]
        split = tokenizers.pre_tokenizers.WhitespaceSplit()
        text = " ".join(texts).replace(END, " ")
        words = [END, *sorted({word for word, _ in split.pre_tokenize_str(text)})]
        model = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=END)
        )
        model.pre_tokenizer = split
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END, unk_token=END)
        fast.save_pretrained(tmp_path / "tiny")
        shape = {"n_positions": 400, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(words)}
        transformers.GPT2Config(**shape, eos_token_id=0, bos_token_id=0).save_pretrained(tmp_path / "tiny")
        return tmp_path / "tiny"

    return made


@quiet
@pytest.mark.parametrize(
    "name", [n if n == "comet" else pytest.param(n, marks=pytest.mark.slow) for n in TASKS]
)
def test_a_run_with_a_transformer_decodes_as_the_task_says(name, tmp_path, tiny):
    pytest.importorskip("rlalign_plugin_hf")
    pipeline = {
        "task": {name: {"sample": True}},
        "policy": {"causal-lm": {"path": str(tiny(name)), "init": "random"}},
        "algorithm": "sft",
        "responses": "logged",
        "train": {"iterations": 4, "prompts": 4, "lr": 0.05},
        "evaluate": {"split": "train", "examples": 4, "use": ["held-out"]},
    }
    finished, session = run(tmp_path, pipeline)
    rows = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    found = [r["eval/held-out/perplexity"] for r in rows if "eval/held-out/perplexity" in r]
    assert found[-1] < found[0]
    examples = sample(name).examples("train")
    for example, tokens in zip(examples, session.models["policy"].prompts(examples), strict=True):
        # What ends a turn is one token to a tokenizer that ends texts by it, and no other is unknown.
        assert tokens.tolist().count(0) == str(example.prompt).count(END)


# -- fingerprints -------------------------------------------------------------------------------------------------


@quiet
@every
def test_fingerprints_change_with_options_and_splits_and_not_with_the_place(name, tmp_path):
    import shutil

    task = sample(name)
    prints = {split: task.fingerprint(split) for split in task.splits()}
    assert len(set(prints.values())) == len(prints)
    assert sample(name).fingerprint("train") == prints["train"]
    assert sample(name, limit=2).fingerprint("train") != prints["train"]
    source = task.place
    assert source is not None
    copies = [shutil.copytree(source, tmp_path / n / "data") for n in "abc"]
    one, same, other = (TASKS[name].Config(path=copy) for copy in copies)
    assert TASKS[name](one).fingerprint("train") == TASKS[name](same).fingerprint("train")
    for file in [f for f in copies[2].rglob("*") if f.is_file()]:
        file.write_text(file.read_text() + "\n")
    assert TASKS[name](other).fingerprint("train") != TASKS[name](one).fingerprint("train")


# -- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def by_words(tmp_path: Path) -> Path:
    """A tokenizer of which every word and every mark is a token."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "<|endoftext|>": 1}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="?", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(tmp_path / "words")
    return tmp_path / "words"


def test_lengths_in_tokens(by_words):
    tokens = Tokens(by_words)
    assert tokens.count("one, two<|endoftext|>three") == 5
    assert tokens.cut("one,  two three", 3) == "one,  two"
    assert tokens.cut("one", 3) == "one"


def test_long_responses_are_cut_on_the_right_and_do_not_end(by_words, tmp_path):
    end = "Human: a\n\nAssistant: "
    row = {"chosen": f"\n\n{end}b c d e", "rejected": f"\n\n{end}b c d"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    options: dict[str, Any] = {"path": tmp_path / "d.jsonl", "max_response_tokens": 4}
    (example,) = HH(HH.Config(**options, tokenizer=by_words)).examples("train")
    # Four tokens: `b c d` and its end fit, `b c d e` fits without its end.
    assert (example.responses, example.finished) == (("b c d e", "b c d"), (False, True))
    (example,) = HH(HH.Config(**{**options, "max_response_tokens": 2}, tokenizer=by_words)).examples("train")
    assert (example.responses, example.finished) == (("b c", "b c"), (False, False))
    (example,) = HH(HH.Config(**options)).examples("train")
    assert (example.responses[0], example.finished) == ("b c d e", (True, True))


def test_old_turns_are_left_out_of_a_long_history(by_words, tmp_path):
    row = {"history": ["one two", "three", "four five"], "knowledge": "k", "response": "r"}
    (tmp_path / "d.json").write_text(json.dumps([row]))
    for limit, kept in ((7, 3), (6, 2), (4, 2), (3, 1), (1, 1)):
        config = FaithDial.Config(path=tmp_path / "d.json", tokenizer=by_words, max_history_tokens=limit)
        (example,) = FaithDial(config).examples("train")
        assert example.meta["history"] == row["history"][-kept:], limit
        assert str(example.prompt).startswith("Knowledge: k<|endoftext|>" + row["history"][-kept])


def test_long_comments_by_tokens(by_words, tmp_path):
    for name, sign in (("positive", 1), ("negative", -1)):
        rows = [f"{name}{i},{'a ' * (i + 1)},{sign},p q" for i in range(10)]
        (tmp_path / f"comments_{name}.csv").write_text("\n".join(["id,text,score,parent_text", *rows]))
    config = RedditComments.Config(path=tmp_path, tokenizer=by_words, max_tokens=10)
    with pytest.warns(
        UserWarning, match=r"6 of 10 drawn comments kept; left out:\n  4 have more than 10 tokens"
    ):
        found = list(RedditComments(config).examples("train"))
    assert all(len(e.responses[0].split()) <= 6 for e in found)


def test_a_tail_is_cut(by_words, tmp_path):
    row = {"head": "h", "relation": "xNeed", "tail": "a b c", "split": "train", "p_valid_model": 1}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    config = Comet.Config(path=tmp_path / "d.jsonl", tokenizer=by_words, max_response_tokens=2)
    assert Comet(config).examples("train")[0].responses == ("a b",)


@quiet
def test_a_tokenizer_is_part_of_the_fingerprint(by_words):
    plain = sample("tldr").fingerprint("train")
    first = sample("tldr", tokenizer=by_words).fingerprint("train")
    assert first != plain
    file = by_words / "tokenizer.json"
    file.write_text(file.read_text().replace("Whitespace", "WhitespaceSplit"))
    assert sample("tldr", tokenizer=by_words).fingerprint("train") not in (plain, first)


def test_a_tokenizer_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"tokenizer: .*: cannot be loaded"):
        sample("tldr", tokenizer=tmp_path).examples("train")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ConfigError, match=r"`transformers`, and it is not installed .*pip install transformers"
    ):
        sample("tldr", tokenizer=tmp_path).examples("train")


# -- lazy ---------------------------------------------------------------------------------------------------------


def test_a_large_file_is_not_held(tmp_path):
    """10 MB of dialogues: what stays is where their turns stand, and a row is read when it is asked for."""
    turn = "word " * 60
    said = []
    for _ in range(4):
        said += [
            {"speaker": "0_Apprentice", "text": turn},
            {"speaker": "1_Wizard", "text": turn, "checked_sentence": {"t": turn}},
        ]
    line = json.dumps({"dialog": said}) + "\n"
    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        for _ in range(10_000_000 // len(line)):
            file.write(line)
    task = WizardOfWikipedia(WizardOfWikipedia.Config(path=path))
    tracemalloc.start()
    try:
        examples = task.examples("train")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(examples) == 4 * (10_000_000 // len(line)) > 9_000
    assert held < 1_000_000 and peak < 3_000_000
    assert examples[-1].id == f"wow/train.jsonl:{10_000_000 // len(line)}#8"
    assert len(examples[-1].meta["history"]) == 7
    path.write_text(line)
    with pytest.raises(ConfigError, match="the file has changed since it was first read"):
        examples[0]


# -- the hub ------------------------------------------------------------------------------------------------------


class FakeSplit:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, data: list[dict[str, Any]]) -> None:
        self.data = data
        self.column_names = list(data[0])

    def __iter__(self) -> Any:
        return iter(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index]


HUB: dict[str, Any] = {
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "faithdial": {"history": ["q"], "knowledge": "k", "response": "a"},
    "wizard-of-wikipedia": {
        "post": ["q"],
        "response": ["a"],
        "knowledge": [["t __knowledge__ k"]],
        "labels": [0],
    },
    "tldr": {"prompt": "q\n\nTL;DR:", "completion": " a"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []

    def load_dataset(path: str, **how: Any) -> Any:
        asked.append((path, how))
        files = str(how.get("data_files"))
        if "summarize_from_feedback" in files:
            info = {"subreddit": "s", "title": "t", "post": "p"}
            row: Any = {"info": info, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
        elif path == "trl-lib/tldr-preference":
            row = {"prompt": "q", "chosen": "a", "rejected": "b"}
        else:
            known = {
                "json": "faithdial",
                "Anthropic/hh-rlhf": "hh",
                "chujiezheng/wizard_of_wikipedia": "wizard-of-wikipedia",
            }
            row = HUB[known.get(path, "tldr")]
        return {"train": FakeSplit([row] * 3), "test": FakeSplit([row])}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_hh_on_the_hub(hub):
    task = HH(HH.Config(subsets=("helpful-base", "harmless-base"), revision="abc"))
    assert len(task.examples("train")) == 6 and len(task.examples("test")) == 2
    assert task.examples("test/harmless-base")[0].id == "Anthropic/hh-rlhf/harmless-base/test:1"
    assert hub == [
        ("Anthropic/hh-rlhf", {"name": None, "revision": "abc", "data_dir": folder})
        for folder in ("helpful-base", "harmless-base")
    ]
    assert task.fingerprint("train") != task.fingerprint("test")


def test_faithdial_on_the_hub_must_be_whole(hub):
    with pytest.raises(ConfigError, match=r"hub: McGill-NLP/FaithDial: `train` holds 3 rows, .* 18,357"):
        FaithDial(FaithDial.Config()).examples("train")
    assert len(FaithDial(FaithDial.Config(whole=False)).examples("train")) == 3
    sha = "7a414e80725eac766f2602676dc8b39f80b061e4"
    files = {
        s: f"hf://datasets/McGill-NLP/FaithDial@{sha}/data/{f}.json"
        for s, f in (("train", "train"), ("val", "valid"), ("test", "test"))
    }
    assert hub[0] == ("json", {"data_files": files})


def test_wizard_of_wikipedia_on_the_hub(hub):
    task = WizardOfWikipedia(WizardOfWikipedia.Config())
    assert [e.prompt for e in task.examples("train")] == ["Knowledge: k<|endoftext|>q<|endoftext|>"] * 3
    assert task.examples("test")[0].id == "wow/chujiezheng/wizard_of_wikipedia/test:1#1"
    other = WizardOfWikipedia(WizardOfWikipedia.Config(faithdial="McGill-NLP/FaithDial"))
    with pytest.raises(ConfigError, match="`test` holds 1 rows, expected 3,539"):
        other.examples("test")


def test_tldr_on_the_hub(hub):
    assert TLDR(TLDR.Config()).examples("train")[0].responses == (" a",)
    assert TLDR(TLDR.Config(data="pairs")).examples("train")[0].scores == (1.0, 0.0)
    assert TLDR(TLDR.Config(data="feedback")).examples("train")[0].responses == (" a", " b")
    home = "hf://datasets/openai/summarize_from_feedback@refs/convert/parquet/comparisons"
    assert hub == [
        ("trl-lib/tldr", {"name": None, "revision": None}),
        ("trl-lib/tldr-preference", {"name": None, "revision": None}),
        (
            "parquet",
            {"data_files": {"train": f"{home}/train/*.parquet", "val": f"{home}/validation/*.parquet"}},
        ),
    ]


def test_what_is_not_on_the_hub_is_said(hub):
    with pytest.raises(ConfigError, match=r"hub: trl-lib/tldr-preference: has no split `held-out`"):
        TLDR(TLDR.Config(data="pairs")).examples("held-out")


def test_without_the_hub_it_is_said_what_else_there_is(monkeypatch):
    def load_dataset(path: str, **how: Any) -> Any:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for name in HUB:
        with pytest.raises(
            ConfigError, match=r"Couldn't reach it\nWithout the hub: `path`, .* `sample: true`"
        ):
            TASKS[name](TASKS[name].Config()).examples("train")


def test_nothing_is_said_of_data_that_is_all_kept():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("hh", "faithdial", "tldr", "reddit-comments"):
            sample(name).examples("train")
