"""What the tasks share: where data come from, what is cut and for whom, what they set, blind splits, the README."""

from __future__ import annotations

import re
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Component, ComponentError, ConfigError, Rollout, Run, Score, hookimpl
from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.data.settings import Sampling
from rlalign.testing import run
from rlalign.testing.bench import registry
from rlalign_plugin_dataset.lengths import Tokens
from rlalign_plugin_grue_tasks.cnn_daily_mail import CNNDailyMail
from rlalign_plugin_grue_tasks.common_gen import CommonGen
from rlalign_plugin_grue_tasks.daily_dialog import DailyDialog
from rlalign_plugin_grue_tasks.e2e import E2E
from rlalign_plugin_grue_tasks.grue import GrueTask
from rlalign_plugin_grue_tasks.gsm8k import GSM8K
from rlalign_plugin_grue_tasks.imdb import IMDB
from rlalign_plugin_grue_tasks.iwslt17 import IWSLT17
from rlalign_plugin_grue_tasks.multi30k import Multi30k
from rlalign_plugin_grue_tasks.narrative_qa import NarrativeQA
from rlalign_plugin_grue_tasks.totto import ToTTo
from rlalign_plugin_grue_tasks.wmt16 import WMT16

TASKS: dict[str, type[GrueTask]] = {
    "imdb": IMDB,
    "common-gen": CommonGen,
    "cnn-daily-mail": CNNDailyMail,
    "totto": ToTTo,
    "e2e": E2E,
    "wmt16": WMT16,
    "iwslt17": IWSLT17,
    "multi30k": Multi30k,
    "narrative-qa": NarrativeQA,
    "daily-dialog": DailyDialog,
    "gsm8k": GSM8K,
}
every = pytest.mark.parametrize("name", TASKS)


def sample(name: str, **options: Any) -> GrueTask:
    cls = TASKS[name]
    return cls(cls.Config(sample=True, **options))  # type: ignore[call-arg]


# -- the hub, and without it ----------------------------------------------------------------------------------


class Split:
    """As the library has a split."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.column_names = list(rows[0])

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []

    def load_dataset(path: str, **how: Any) -> Any:
        asked.append((path, how))
        if "common_gen" in str(how) or "common_gen" in path:
            row: Any = {"concepts": ["a", "b"], "target": "A b.", "references": []}
        else:
            row = {
                "text": "one two three",
                "label": 1,
                "article": "An article.",
                "highlights": "It .",
                "mr": "name[A]",
            }
        return {"train": Split([{**row, "ref": "A."}] * 10), "test": Split([{**row, "ref": "A."}])}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_a_commit_of_the_hub_is_pinned(hub):
    with pytest.raises(
        ConfigError, match=r"hub: stanfordnlp/imdb: `train` holds 10 rows, expected 25,000; `whole"
    ):
        IMDB(IMDB.Config()).examples("train")
    assert len(IMDB(IMDB.Config(whole=False)).examples("train")) == 8
    assert len(CNNDailyMail(CNNDailyMail.Config(whole=False, revision="abc")).examples("train")) == 10
    assert [asked[0:1] + tuple(asked[1].values()) for asked in hub] == [
        ("stanfordnlp/imdb", "plain_text", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"),
        ("stanfordnlp/imdb", "plain_text", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"),
        ("abisee/cnn_dailymail", "3.0.0", "abc"),
    ]


def test_what_a_script_describes_is_read_from_the_export(hub):
    task = CommonGen(CommonGen.Config(whole=False))
    assert task.examples("train")[0].prompt == "generate a sentence with: a b."
    home = "hf://datasets/GEM/common_gen@refs/convert/parquet/common_gen"
    files = {
        s: f"{home}/{f}/*.parquet" for s, f in (("train", "train"), ("val", "validation"), ("test", "test"))
    }
    assert hub == [("parquet", {"data_files": files})]


def test_another_name_on_the_hub_is_read_as_it_is_and_has_other_sizes(hub):
    task = CommonGen(CommonGen.Config(hub="allenai/common_gen"))
    assert len(task.examples("train")) == 1
    assert hub == [("allenai/common_gen", {"name": None, "revision": None})]
    with pytest.raises(ConfigError, match="expected 67,389"):
        CommonGen(CommonGen.Config(hub="allenai/common_gen", whole=True)).examples("train")


@pytest.mark.parametrize("name", [name for name in TASKS if name != "narrative-qa"])
def test_offline_it_is_said_how_to_get_the_data(name, monkeypatch):
    def load_dataset(path: str, **how: Any) -> Any:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    cls = TASKS[name]
    with pytest.raises(ConfigError) as told:
        cls(cls.Config()).examples("train")
    command = rf"`hf download {cls.published.hub} --repo-type dataset .*--local-dir FOLDER` fetches a copy"
    assert "Couldn't reach it" in str(told.value) and re.search(command, str(told.value))
    assert "`path: FOLDER` reads it" in str(told.value) and "`sample: true`" in str(told.value)


def test_the_command_fetches_what_is_read():
    assert IMDB.published.command() == (
        "hf download stanfordnlp/imdb --repo-type dataset --revision e6281661ce1c48d982bc483cf8a173c1bbeb5d31 "
        "--include 'plain_text/*' --local-dir FOLDER"
    )
    assert ToTTo.published.command() == (
        "hf download GEM/totto --repo-type dataset --revision refs/convert/parquet --include 'totto/*' "
        "--local-dir FOLDER"
    )


def test_a_folder_that_was_fetched_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for split in ("train", "validation", "test"):
        folder = tmp_path / "default" / split
        folder.mkdir(parents=True)
        rows = {
            "meaning_representation": ["name[A]", "name[A]"],
            "human_reference": [f"A {split}.", "Another."],
        }
        parquet.write_table(pyarrow.table(rows), folder / "0000.parquet")
    task = E2E(E2E.Config(path=tmp_path))
    assert sorted(task.splits()) == ["test", "train", "val"]
    assert task.examples("val")[0].references == ("A validation.", "Another.")


# -- what is cut, and for whom ----------------------------------------------------------------------------------


@pytest.fixture
def tokenizers(tmp_path: Path) -> dict[str, Path]:
    """One that parts texts at spaces and puts an end behind, as T5's does; and bytes that are joined, as GPT-2's."""
    library, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    texts = [
        str(e.prompt) for name in TASKS for split in ("train", "val") for e in sample(name).examples(split)
    ]
    words = library.Tokenizer(library.models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator(texts, library.trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    words.post_processor = library.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    pieces = library.Tokenizer(library.models.BPE())
    pieces.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet)
    pieces.train_from_iterator(texts, trainer)
    made = {}
    for name, (one, end) in {"words": (words, "</s>"), "pieces": (pieces, "<end>")}.items():
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=one, eos_token=end, pad_token=end, unk_token="<unk>" if name == "words" else None
        )
        fast.save_pretrained(tmp_path / name)
        made[name] = tmp_path / name
    return made


@pytest.mark.parametrize(
    "name, most, cut",
    [
        # The end that the tokenizer puts behind counts too.
        ("imdb", 5, "eyes. The old lighthouse"),
        ("common-gen", 7, "generate a sentence with: baker oven"),
        ("cnn-daily-mail", 4, "Summarize: A baker"),
        ("totto", 6, "</row_header> </cell> </table>"),
        ("e2e", 4, "describe: name[Blue Door],"),
        ("wmt16", 7, "translate English to German: The city"),
        ("iwslt17", 6, "translate English to German: When"),
        ("multi30k", 7, "translate English to German: A woman"),
        ("narrative-qa", 11, "where does ilse make lamps? \\n ilse makes lamps in"),
        ("daily-dialog", 6, "! Thank you . <EOU>"),
        ("gsm8k", 7, "does he sell that day?\nAnswer:"),
    ],
)
def test_prompts_are_cut_at_the_side_that_the_task_says(tokenizers, name, most, cut):
    task = sample(name, tokenizer=tokenizers["words"], max_prompt_tokens=most)
    found = [str(e.prompt).strip() for split in ("train", "val") for e in task.examples(split)]
    assert cut in [" ".join(text.split()[-3:]) if name == "totto" else text for text in found]
    tokens = Tokens(tokenizers["words"])
    assert all(tokens.count(text) + tokens.around <= most for text in found)
    uncut = [str(e.prompt) for split in ("train", "val") for e in sample(name).examples(split)]
    kept = str.endswith if task.side == "left" else str.startswith
    assert all(kept(whole.strip(), text) for whole, text in zip(uncut, found, strict=True))


@every
def test_bytes_are_cut_where_tokens_end(tokenizers, name):
    tokens = Tokens(tokenizers["pieces"])
    for most in (1, 2, 5, 16, 40):
        for whole, cut in zip(
            sample(name).examples("train"),
            sample(name, tokenizer=tokenizers["pieces"], max_prompt_tokens=most).examples("train"),
            strict=True,
        ):
            assert 0 < tokens.count(str(cut.prompt)) <= most
            assert cut.prompt == whole.prompt or tokens.count(str(whole.prompt)) > most


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_character_of_several_tokens_is_cut_off_whole(tokenizers, side):
    tokens = Tokens(tokenizers["pieces"])
    text = "\N{GRINNING FACE}a\N{GRINNING FACE}"
    smile = tokens.count("\N{GRINNING FACE}")
    assert smile > 1 and tokens.count(text) == 2 * smile + 1
    for limit in range(-1, 2 * smile + 2):
        kept = text[: (limit >= smile) + (limit > smile) + (limit > 2 * smile)]
        assert tokens.cut(text, limit, side) == (kept if side == "right" else kept[::-1])


def test_a_limit_that_leaves_no_room_ends(tokenizers):
    (first, *_) = sample("e2e", tokenizer=tokenizers["words"], max_prompt_tokens=1).examples("train")
    assert first.prompt == ""


def test_what_a_chat_asks_for_is_never_cut(tokenizers):
    task = sample("cnn-daily-mail", style="chat", tokenizer=tokenizers["words"], max_prompt_tokens=4)
    asked = "Summarize this article in three or four short sentences.\n\n"
    assert task.examples("train")[1].prompt[0]["content"] == asked + "A baker in"


def test_of_a_chat_the_question_and_the_last_turn_stay(tokenizers):
    how = {"style": "chat", "tokenizer": tokenizers["words"]}
    (message,) = sample("narrative-qa", **how, max_prompt_tokens=5).examples("train")[0].prompt
    assert message["content"].endswith(
        "Question: Where does Ilse make lamps?\n\nSummary: Ilse makes lamps in"
    )
    turns = sample("daily-dialog", **how, max_prompt_tokens=20).examples("train")[0].prompt
    assert [turn["content"] for turn in turns] == [
        "I have looked there twice .",
        "Then look under the newspaper .",
        "Here they are ! Thank you .",
    ]


def test_of_a_chat_whose_last_turn_is_too_long_its_end_stays(tokenizers):
    how = {"style": "chat", "tokenizer": tokenizers["words"], "max_prompt_tokens": 4}
    assert sample("daily-dialog", **how).examples("train")[0].prompt == [
        {"role": "user", "content": " ! Thank you ."}
    ]
    whole = sample("daily-dialog", style="chat", compat="rl4lms").examples("train")[0].prompt
    assert sample("daily-dialog", **how, compat="rl4lms").examples("train")[0].prompt == whole


def test_rl4lms_leaves_it_to_the_policy(tokenizers):
    how = {"tokenizer": tokenizers["words"], "max_prompt_tokens": 5}
    others = ({**how, "compat": "rl4lms"}, {}, how)
    prompts = [sample("imdb", **other).examples("train")[0].prompt for other in others]
    assert prompts[0] == prompts[1] != prompts[2]


def test_the_tokenizer_and_the_length_are_part_of_the_fingerprint(tokenizers):
    how = {"tokenizer": tokenizers["words"]}
    others = ({}, how, {**how, "max_prompt_tokens": 9})
    assert len({sample("imdb", **other).fingerprint("train") for other in others}) == 3


@every
def test_rollout_reward_and_evaluation_read_the_same_prompt(tokenizers, name, tmp_path):
    """To the token: what the policy goes on from as it learns and as it is evaluated; and the reward its text."""
    transformers = pytest.importorskip("transformers")
    folder = tokenizers["pieces"]
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    shape = {"n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": size}
    transformers.GPT2Config(**shape, eos_token_id=0, bos_token_id=0).save_pretrained(folder)
    seen: dict[str, dict[str, set[tuple[int, ...]]]] = {
        "rollout": defaultdict(set),
        "evaluation": defaultdict(set),
    }
    texts: dict[str, set[str]] = defaultdict(set)

    class Watch(Component):
        """Notes prompts."""

        @hookimpl
        def reward(self, run: Run, rollout: Rollout) -> Score:
            for example, tokens in zip(rollout.examples, rollout.inputs, strict=True):
                seen["rollout"][example.id].add(tuple(tokens.tolist()))
                texts[example.id].add(str(example.prompt))
            return Score(torch.zeros(len(rollout.texts)))

        @hookimpl
        def evaluate(self, run: Run, rollout: Rollout) -> dict[str, float]:
            for example, tokens in zip(rollout.examples, rollout.inputs, strict=True):
                seen["evaluation"][example.id].add(tuple(tokens.tolist()))
            return {"none": 0.0}

    run(
        tmp_path,
        {
            "task": {name: {"sample": True, "tokenizer": str(folder), "max_prompt_tokens": 12}},
            "policy": {"causal-lm": {"path": str(folder), "init": "random"}},
            "rewards": ["watch"],
            "algorithm": "reinforce",
            "generation": {"min_new_tokens": 0, "max_new_tokens": 3, "top_k": 0},
            "train": {"iterations": 3, "prompts": 4, "lr": 0.0},
            "evaluate": {
                "split": "train",
                "generation": {"beams": 1, "min_new_tokens": 0, "max_new_tokens": 3},
            },
        },
        {"watch": Watch},
    )
    assert seen["rollout"] and seen["evaluation"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for example, found in seen["rollout"].items():
        assert len(found) == 1 and found == seen["evaluation"][example]
        (tokens,) = found
        assert len(tokens) <= 12
        assert texts[example] == {tokenizer.decode(tokens)}


# -- what a task sets -------------------------------------------------------------------------------------------


@every
def test_its_settings_are_those_of_a_pipeline(name):
    cls = TASKS[name]
    pipeline = {
        "task": {name: {"sample": True}},
        "policy": "bytes",
        "algorithm": "reinforce",
        "rewards": ["length"],
        "train": {"iterations": 1},
    }
    phase = load_pipeline("p.yaml", registry=registry(), text=pipeline).phases[0]
    wanted = Sampling(**cls.defaults["generation"])
    assert phase.generation == wanted and wanted.max_new_tokens == Sampling(**cls.generation).max_new_tokens
    pipeline["generation"] = {"max_new_tokens": 7}
    said = load_pipeline("p.yaml", registry=registry(), text=pipeline).phases[0].generation
    assert said == wanted.model_copy(update={"max_new_tokens": 7})


@every
def test_its_metrics_are_there(name):
    known = Registry()
    for metric in TASKS[name].metrics:
        called, options = (metric, {}) if isinstance(metric, str) else next(iter(metric.items()))
        fields = known.load(called).cls.Config.model_fields
        assert (
            {option for option, field in fields.items() if field.is_required()} <= set(options) <= set(fields)
        )


@every
def test_the_readme_says_the_facts(name):
    cls = TASKS[name]
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    told = " ".join(line for line in readme.splitlines() if line.startswith(f"| `{name}` |"))
    limit = cls.Config.model_fields["max_prompt_tokens"].default
    facts = [cls.published.hub, cls.licence, cls.warm_start or "none", f"{limit}, {cls.side}"]
    facts += [f"{size:,}" for size in cls.sizes.values()]
    how = cls.defaults["generation"]
    facts += [f"top-k {how['top_k']}"] if "top_k" in how else []
    facts += [f"{cls.generation['beams']} beams"] if "beams" in cls.generation else []
    assert [fact for fact in facts if fact not in told] == []


# -- blind splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["common-gen", "totto"])
@pytest.mark.parametrize("metric", ["rouge", "meteor-nosyn", "chrf", "bleu"])
def test_a_blind_split_is_refused_by_what_compares_with_references(name, metric, tmp_path):
    told = rf"`{metric}` compares with references, and .* has none: .* evaluate on `val`"
    with pytest.raises(ComponentError, match=told):
        run(tmp_path, evaluated(name, metric))


@pytest.mark.parametrize("name, metric", [("common-gen", "coverage"), ("totto", "diversity")])
def test_what_reads_no_references_measures_a_blind_split(name, metric, tmp_path):
    finished, _ = run(tmp_path, evaluated(name, metric))
    assert any(key.startswith(f"eval/{metric}") for key in finished.metrics)


def evaluated(name: str, metric: str) -> dict[str, Any]:
    return {
        "task": {name: {"sample": True}},
        "policy": "bytes",
        "rewards": ["length"],
        "algorithm": "reinforce",
        "generation": {"min_new_tokens": 0, "max_new_tokens": 4},
        "train": {"iterations": 1, "prompts": 2},
        "evaluate": {
            "split": "test",
            "use": [metric],
            "generation": {"beams": 1, "min_new_tokens": 0, "max_new_tokens": 4},
        },
    }
