"""wmt16, iwslt17, multi30k: prompts to the letter, both ways, and every layout in which two languages are published."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlalign import ConfigError, Example
from rlalign_plugin_grue_tasks.iwslt17 import IWSLT17
from rlalign_plugin_grue_tasks.multi30k import Multi30k
from rlalign_plugin_grue_tasks.translation import Translation
from rlalign_plugin_grue_tasks.wmt16 import WMT16

TASKS: tuple[type[Translation], ...] = (WMT16, IWSLT17, Multi30k)
every = pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.__name__)


def made(cls: type[Translation], **options: Any) -> Translation:
    return cls(cls.Config(**options))  # type: ignore[call-arg]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def sides(examples: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.meta["source"], example.references) for example in examples]


# -- prompts and references ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "split", "prompt", "reference"),
    [
        (
            WMT16,
            "train",
            "translate English to German: The city council will vote on the new tram line next Tuesday.",
            "Der Stadtrat stimmt am kommenden Dienstag über die neue Straßenbahnlinie ab.",
        ),
        (
            WMT16,
            "test",
            "translate English to German: The election was calm, and turnout was high.",
            "Die Wahl verlief ruhig, und die Beteiligung war hoch.",
        ),
        (
            IWSLT17,
            "train",
            "translate English to German: When I was nine, my grandmother gave me a box full of broken clocks.",
            "Als ich neun war, gab mir meine Großmutter eine Schachtel voller kaputter Uhren.",
        ),
        (
            IWSLT17,
            "val",
            "translate English to German: What would you do with one more hour a day?",
            "Was würden Sie mit einer Stunde mehr am Tag anfangen?",
        ),
        (
            Multi30k,
            "val",
            "translate English to German: A cook throws a pancake into the air.",
            "Ein Koch wirft einen Pfannkuchen in die Luft.",
        ),
    ],
)
def test_prompts_and_references(cls, split, prompt, reference):
    first = made(cls, sample=True).examples(split)[0]
    assert (first.prompt, first.references) == (prompt, (reference,))
    assert first.responses == (" " + reference,)


def test_the_other_way():
    first = made(WMT16, sample=True, source="de", target="en").examples("train")[0]
    assert first.prompt == (
        "translate German to English: Der Stadtrat stimmt am kommenden Dienstag über die neue Straßenbahnlinie ab."
    )
    assert first.references == ("The city council will vote on the new tram line next Tuesday.",)


def test_as_a_chat():
    first = made(Multi30k, sample=True, style="chat").examples("test")[0]
    text = "Translate this text from English to German. Answer with the translation alone.\n\n"
    assert first.prompt == [{"role": "user", "content": text + "A man on a ladder paints a wall blue."}]
    assert first.responses == ("Ein Mann auf einer Leiter streicht eine Wand blau.",)


def test_tags_and_markup_are_no_text():
    task = made(IWSLT17, sample=True)
    train = task.examples("train")
    assert len(train) == 8
    assert train[6].meta["source"] == "It is made of paper & glue, and it holds a cow."
    assert train[6].references == ("Sie besteht aus Papier & Leim, und sie trägt eine Kuh.",)
    assert [e.id for e in task.examples("test")] == [
        "IWSLT17.TED.tst2010.en-de.en.xml:6",
        "IWSLT17.TED.tst2010.en-de.en.xml:7",
    ]


@every
def test_a_response_is_read_without_the_white_space_around_it(cls):
    assert made(cls, sample=True).postprocess(" Guten Tag. \n") == "Guten Tag."


def test_white_space_around_a_sentence(tmp_path):
    """Is left out, but where RL4LMs' text is asked for, which also puts no space before what is learned."""
    write(tmp_path / "train.jsonl", json.dumps({"translation": {"en": "One. ", "de": " Eins. "}}) + "\n")
    (example,) = made(WMT16, path=tmp_path).examples("train")
    assert (example.prompt, example.references) == ("translate English to German: One.", ("Eins.",))
    (example,) = made(WMT16, path=tmp_path, compat="rl4lms").examples("train")
    assert example.prompt == "translate English to German: One. "
    assert example.references == example.responses == (" Eins. ",)


# -- languages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "source", "target", "said"),
    [
        (WMT16, "en", "xx", r"there is no language `xx` \(there are: en, cs, de, fi, ro, ru, tr\)"),
        (WMT16, "de", "cs", "one of `source` and `target` is `en`"),
        (Multi30k, "en", "en", "are the same language"),
    ],
)
def test_languages_that_there_are_not(cls, source, target, said):
    with pytest.raises(ValidationError, match=said):
        made(cls, sample=True, source=source, target=target)


def test_two_languages_of_four(tmp_path):
    write(tmp_path / "train.de", "Ein Hund.\n")
    write(tmp_path / "train.fr", "Un chien.\n")
    write(tmp_path / "train.en", "A dog.\n")
    (example,) = made(Multi30k, path=tmp_path, source="fr", target="de").examples("train")
    assert (example.prompt, example.references) == ("translate French to German: Un chien.", ("Ein Hund.",))


# -- layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False])
def test_rows(tmp_path, nested):
    row: dict[str, Any] = {"en": "One.", "de": "Eins."}
    write(tmp_path / "train.jsonl", json.dumps({"translation": row} if nested else row) + "\n")
    assert sides(made(WMT16, path=tmp_path).examples("train")) == [("One.", ("Eins.",))]
    assert sides(made(WMT16, path=tmp_path / "train.jsonl").examples("train")) == [("One.", ("Eins.",))]


def test_packed_files_and_odd_line_breaks(tmp_path):
    for language, text in (("en", "One\x85and a half.\r\nTwo.\r\n"), ("de", "Eins\u2028einhalb.\nZwei.\n")):
        (tmp_path / f"train.{language}.gz").write_bytes(gzip.compress(text.encode()))
    task = made(Multi30k, path=tmp_path)
    examples = task.examples("train")
    expected = [("One\x85and a half.", ("Eins\u2028einhalb.",)), ("Two.", ("Zwei.",))]
    assert sides(examples) == expected and sides(reversed(list(examples))) == expected[::-1]
    before = task.fingerprint("train")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"Eins.\nZwei.\n"))
    assert made(Multi30k, path=tmp_path).fingerprint("train") != before


def test_one_file_of_a_pair_names_both(tmp_path):
    write(tmp_path / "a.en", "One.\n")
    write(tmp_path / "a.de", "Eins.\n")
    write(tmp_path / "b.en", "Two.\n")
    write(tmp_path / "b.de", "Zwei.\n")
    assert sides(made(Multi30k, path=tmp_path / "b.de").examples("train")) == [("Two.", ("Zwei.",))]
    assert len(made(Multi30k, path=tmp_path).examples("train")) == 2


def test_files_that_do_not_belong_together(tmp_path):
    write(tmp_path / "train.en", "One.\nTwo.\n")
    write(tmp_path / "train.de", "Eins.\n")
    with pytest.raises(ConfigError, match=r"train\.de has 1 lines and train\.en has more"):
        made(Multi30k, path=tmp_path).examples("train")


def test_names_of_files_say_more_than_names_of_folders(tmp_path):
    for split in ("train", "dev", "tst2010"):
        write(tmp_path / f"training-data/{split}.en", split)
        write(tmp_path / f"training-data/{split}.de", split)
    task = made(IWSLT17, path=tmp_path)
    assert {split: sides(task.examples(split)) for split in task.splits()} == {
        "train": [("train", ("train",))],
        "val": [("dev", ("dev",))],
        "test": [("tst2010", ("tst2010",))],
    }


def test_a_folder_of_too_many_files_is_not_walked_through(tmp_path, monkeypatch):
    for number in range(3):
        write(tmp_path / f"{number}.en", "One.\n")
    monkeypatch.setattr("rlalign_plugin_dataset.sources.MOST_FILES", 2)
    with pytest.raises(ConfigError, match="holds more than 2 files; name the folder of the data alone"):
        made(Multi30k, path=tmp_path).examples("train")


def test_half_of_a_pair(tmp_path):
    write(tmp_path / "train.en", "One.\n")
    with pytest.raises(ConfigError, match=r"train\.en is there, and no such file in `de`"):
        made(Multi30k, path=tmp_path).examples("train")
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        made(Multi30k, path=tmp_path / "nowhere").examples("train")


def test_rows_that_cannot_be_used(tmp_path):
    (tmp_path / "train.en").write_bytes(b"One.\nTw\xff.\n\nFour.\n")
    write(tmp_path / "train.de", "Eins.\nZwei.\nDrei.\n \n")
    with pytest.warns(UserWarning, match="left out") as caught:
        examples = made(Multi30k, path=tmp_path).examples("train")
    assert sides(examples) == [("One.", ("Eins.",))]
    told = "\n".join(str(each.message) for each in caught)
    assert "train.en:2: not UTF-8: byte 0xff at place 3" in told
    assert "2 are empty on one side (first train.en:3)" in told


def test_a_broken_packed_file(tmp_path):
    write(tmp_path / "train.en", "One.\n")
    (tmp_path / "train.de.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match=r"train\.de\.gz: the packed file is damaged"):
        made(Multi30k, path=tmp_path).examples("train")


def test_test_sets_of_multi30k(tmp_path):
    for stem in ("train", "val", "test_2016_flickr", "test_2017_mscoco"):
        write(tmp_path / f"{stem}.en", f"{stem} one.\n")
        write(tmp_path / f"{stem}.de", f"{stem} eins.\n")
    task = made(Multi30k, path=tmp_path)
    assert sorted(task.splits()) == ["test", "test_2017_mscoco", "train", "val"]
    assert sides(task.examples("test")) == [("test_2016_flickr one.", ("test_2016_flickr eins.",))]


def sgm(kind: str, *segments: str) -> str:
    text = "".join(f'<seg id="{n}">{text}</seg>\n' for n, text in enumerate(segments, 1))
    return f'<{kind} setid="s">\n<doc docid="d"><p>\n{text}</p></doc>\n</{kind}>\n'


def test_wmt_as_its_site_offers_it(tmp_path):
    for language, one in (("en", "One."), ("de", "Eins."), ("cs", "Jedna.")):
        write(tmp_path / f"train/europarl-v7.de-en.{language}", one + "\n")
        write(tmp_path / f"train/news-commentary-v11.de-en.{language}", one + "\n")
    for year, word in ((2014, "old"), (2015, "dev"), (2016, "test")):
        write(tmp_path / f"dev/newstest{year}-ende-src.en.sgm", sgm("srcset", word, "b"))
        write(tmp_path / f"dev/newstest{year}-ende-ref.de.sgm", sgm("refset", word.upper(), "B"))
        write(tmp_path / f"dev/newstest{year}-deen-src.de.sgm", sgm("srcset", f"back {word}"))
        write(tmp_path / f"dev/newstest{year}-deen-ref.en.sgm", sgm("refset", f"BACK {word}"))
    task = made(WMT16, path=tmp_path)
    assert sorted(task.splits()) == ["newstest2014", "test", "train", "val"]
    assert sides(task.examples("train")) == [("One.", ("Eins.",))] * 2
    assert sides(task.examples("val")) == [("dev", ("DEV",)), ("b", ("B",))]
    assert sides(task.examples("test")) == [("test", ("TEST",)), ("b", ("B",))]
    back = made(WMT16, path=tmp_path, source="de", target="en")
    assert sides(back.examples("test")) == [("back test", ("BACK test",))]


# -- the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the library that reads the hub: one row a split."""
    asked: list[Any] = []

    class Split(list[dict[str, Any]]):
        column_names = ("translation",)

    def load_dataset(path: str, **how: Any) -> Any:
        asked.append((path, how))
        names = how.get("data_files") or ("train", "validation", "test")
        return {name: Split([{"translation": {"en": f"{name}.", "de": "Satz."}}]) for name in names}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_wmt_on_the_hub(hub):
    task = made(WMT16, whole=False)
    assert task.examples("val")[0].prompt == "translate English to German: validation."
    made(WMT16, whole=False, source="de", target="en", revision="abc").examples("train")
    sha = "41d8a4013aa1489f28fea60ec0932af246086482"
    assert hub == [
        ("wmt/wmt16", {"name": "de-en", "revision": sha}),
        ("wmt/wmt16", {"name": "de-en", "revision": "abc"}),
    ]


def test_iwslt_on_the_hub(hub):
    made(IWSLT17, whole=False).examples("val")
    home = "hf://datasets/IWSLT/iwslt2017@refs/convert/parquet/iwslt2017-en-de"
    files = {
        "train": f"{home}/train/*.parquet",
        "val": f"{home}/validation/*.parquet",
        "test": f"{home}/test/*.parquet",
    }
    assert hub == [("parquet", {"data_files": files})]


@pytest.mark.parametrize(
    ("cls", "split", "size"),
    [
        (WMT16, "val", "2,169"),
        (WMT16, "test", "2,999"),
        (IWSLT17, "train", "206,112"),
        (Multi30k, "val", "1,014"),
    ],
)
def test_what_is_not_whole_is_told(hub, cls, split, size):
    with pytest.raises(
        ConfigError, match=rf"holds 1 rows, expected {size}; `whole: false` takes it as it is"
    ):
        made(cls).examples(split)


def test_the_warm_start_is_of_one_direction():
    assert made(IWSLT17, sample=True).warm_start == "rajkumarrrk/t5-fine-tuned-on-iwslt2017en_de"
    assert made(IWSLT17, sample=True, source="de", target="en").warm_start is None


def test_an_example_says_all_that_rewards_read():
    example = made(WMT16, sample=True).examples("val")[0]
    assert isinstance(example, Example)
    assert example.meta["source"] == "The price of bread has risen for the third time this year."
