"""E2E: one example a set of facts, with all its texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign import ConfigError
from rlalign_plugin_grue_tasks.e2e import E2E, slots

BLUE_DOOR = "name[Blue Door], eatType[coffee shop], area[riverside], familyFriendly[yes]"


def made(**options: object) -> E2E:
    return E2E(E2E.Config(**({"sample": True} | options)))  # type: ignore[arg-type]


def test_prompts_and_all_references():
    train = made(bad_rows="error").examples("train")
    assert [len(e.references) for e in train] == [2, 3, 1]
    assert train[1].prompt == f"describe: {BLUE_DOOR}"
    assert train[1].references == (
        "Blue Door is a coffee shop by the river where families are welcome.",
        "By the river there is the family friendly coffee shop Blue Door.",
        "Blue Door: a coffee shop at the riverside that likes children.",
    )
    assert train[1].meta["table"] == [
        ["name", "Blue Door"],
        ["eatType", "coffee shop"],
        ["area", "riverside"],
        ["familyFriendly", "yes"],
    ]
    assert train[1].responses[0] == " Blue Door is a coffee shop by the river where families are welcome."


def test_splits():
    task = made()
    assert [len(task.examples(split)) for split in ("train", "val", "test")] == [3, 2, 2]
    assert (
        task.examples("test")[1].prompt == "describe: name[Salt and Fig], food[French], customer rating[high]"
    )


def test_chat():
    said = "Describe this restaurant in one or two sentences, with every fact that is given:\n\n" + BLUE_DOOR
    assert list(made(style="chat").examples("train")[1].prompt) == [{"role": "user", "content": said}]


def test_the_hubs_columns(tmp_path: Path):
    (tmp_path / "train.csv").write_text(
        "meaning_representation,human_reference\nname[A],One.\nname[B],Two.\nname[A],Three.\n"
    )
    found = made(sample=False, path=tmp_path).examples("train")
    assert [(e.prompt, e.references) for e in found] == [
        ("describe: name[A]", ("One.", "Three.")),
        ("describe: name[B]", ("Two.",)),
    ]


def test_a_test_set_without_texts_is_blind(tmp_path: Path):
    (tmp_path / "testset.csv").write_text("mr\nname[A]\n")
    (example,) = made(sample=False, path=tmp_path).examples("test")
    assert example.references == () and "testset_w_refs.csv" in example.without_references
    (tmp_path / "testset_w_refs.csv").write_text("mr,ref\nname[A],One.\n")
    assert made(sample=False, path=tmp_path).examples("test")[0].references == ("One.",)


def test_facts_that_are_none(tmp_path: Path):
    assert slots("name[The Punter], priceRange[less than £20]") == [
        ["name", "The Punter"],
        ["priceRange", "less than £20"],
    ]
    (tmp_path / "trainset.csv").write_text("mr,ref\nA restaurant,One.\n")
    with pytest.raises(ConfigError, match=r"`mr` is 'A restaurant', expected facts such as"):
        made(sample=False, path=tmp_path).examples("train")
