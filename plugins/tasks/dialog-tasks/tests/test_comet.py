"""comet: the prompt, ATOMIC-10X's splits in one file, ATOMIC-2020's tails in groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlalign import ConfigError
from rlalign_plugin_dialog_tasks import Comet


def row(**other: Any) -> dict[str, Any]:
    return {
        "head": "PersonX runs ",
        "relation": "xWant",
        "tail": " to rest",
        "split": "train",
        "p_valid_model": 0.5,
        **other,
    }


def write(folder: Path, rows: list[Any], test: str | None = None) -> Path:
    (folder / "ATOMIC10X.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if test is not None:
        (folder / "test.tsv").write_text(test)
    return folder


def comet(path: Path, **options: Any) -> Comet:
    return Comet(Comet.Config(path=path, **options))


def test_a_tail(tmp_path):
    (example,) = comet(write(tmp_path, [row()])).examples("train")
    assert example.prompt == "<head> PersonX runs </head> <relation> xWant </relation> [GEN] "
    assert (example.responses, example.scores, example.finished) == (("to rest",), (0.5,), (False,))
    assert example.meta == {
        "head": "PersonX runs",
        "relation": "xWant",
        "references": ["to rest"],
        "split": "train",
    }
    assert comet(tmp_path, end=True).examples("train")[0].finished == (True,)


def test_splits_of_one_file(tmp_path):
    splits = ["train", "val", "test", "train", "val", "val"]
    rows = [row(split=s, tail=str(i)) for i, s in enumerate(splits)]
    task = comet(write(tmp_path, rows))
    assert task.splits() == ["train", "val", "test10x"]
    found = {s: [e.responses[0] for e in task.examples(s)] for s in task.splits()}
    assert found == {"train": ["0", "3"], "val": ["1", "4", "5"], "test10x": ["2"]}
    with pytest.raises(ConfigError, match=r"has no split `test` \(splits: train, val, test10x\)"):
        task.examples("test")
    assert [e.responses[0] for e in comet(tmp_path / "ATOMIC10X.jsonl").examples("val")] == ["1", "4", "5"]
    limited = comet(tmp_path, limit=1)
    assert [len(limited.examples(s)) for s in limited.splits()] == [1, 1, 1]


def test_val_is_drawn_once_for_all(tmp_path):
    task = comet(write(tmp_path, [row(split="val", tail=str(i)) for i in range(50)] + [row()]), val_size=20)
    drawn = [int(e.responses[0]) for e in task.examples("val")]
    assert len(drawn) == 20 and drawn == sorted(set(drawn)) and drawn != list(range(20))
    assert drawn == [int(e.responses[0]) for e in comet(tmp_path, val_size=20).examples("val")]


TEST = "a\txNeed\tb\na\txNeed\tc\nb\txWant\td\na\txNeed\tb\nx\tIsA\ty\na\txWant\te\n"


def test_tails_of_atomic_2020_stand_in_groups(tmp_path):
    task = comet(write(tmp_path, [row()], TEST))
    with pytest.warns(
        UserWarning, match=r"5 of 6 examples kept; left out:\n  1 have a relation that ATOMIC-10X"
    ):
        found = task.examples("test")
    assert [(e.meta["head"], e.meta["relation"], e.meta["references"]) for e in found] == [
        ("a", "xNeed", ["b", "c"]),
        ("b", "xWant", ["d"]),
        ("a", "xWant", ["e"]),
    ]
    assert all(e.responses == () for e in found)


@pytest.mark.parametrize("header", ["", "head\trelation\ttail\tp_valid_model\n"])
def test_with_a_critics_scores_the_best_tail_is_the_response(tmp_path, header):
    test = header + "a\txNeed\tb\t0.25\na\txNeed\tc\t0.75\na\txNeed\td\t0.75\n"
    (example,) = comet(write(tmp_path, [row()], test)).examples("test")
    assert (example.responses, example.scores) == (("c",), (0.75,))
    assert example.meta["references"] == ["b", "c", "d"]
    with pytest.raises(ConfigError, match=r"2 fields where (the header has|there should be) 4"):
        comet(write(tmp_path, [row()], test + "a\tb\n"), bad_rows="error").examples("test")


def test_all_tails_of_an_event_in_a_row(tmp_path):
    """As the test file of COMET's repository has them, which needs nothing beside it."""
    test = (
        "PersonX  runs @@ xNeed\tto breathe| shoes |none\n"
        'PersonX runs @@ xWant\t"to say ""hi""| to rest"\n'
        "shoe @@ ObjectUse\tto run\n"
    )
    (tmp_path / "test.tsv").write_text(test)
    for path in (tmp_path, tmp_path / "test.tsv"):
        task = comet(path)
        assert task.splits() == ["test"]
        with pytest.warns(UserWarning, match=r"2 of 3 examples kept; left out:\n  1 have a relation"):
            found = task.examples("test")
        assert [(e.id, e.prompt, e.responses, e.meta["references"]) for e in found] == [
            (
                "test.tsv:1",
                "<head> PersonX  runs </head> <relation> xNeed </relation> [GEN] ",
                (),
                ["to breathe", "shoes", "none"],
            ),
            (
                "test.tsv:2",
                "<head> PersonX runs </head> <relation> xWant </relation> [GEN] ",
                (),
                ['to say "hi"', "to rest"],
            ),
        ]
    (tmp_path / "test.tsv").write_text(test + "PersonX runs\tto rest\nPersonX eats @@ xNeed\t|\n")
    with pytest.raises(ConfigError, match=r"(?s)expected `head @@ relation`.*`tails` is empty"):
        comet(tmp_path, bad_rows="error").examples("test")
    assert comet(write(tmp_path, [row()])).splits() == ["train", "val", "test10x", "test"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"p_valid_model": 1.5}, "`p_valid_model` is 1.5, expected 0 to 1"),
        ({"p_valid_model": float("nan")}, "`p_valid_model` is nan"),
        ({"p_valid_model": None}, "`p_valid_model` is nothing"),
        ({"tail": ""}, "`tail` is empty"),
        ({"head": 3}, "`head` is a number"),
        ({"split": "dev"}, "`split` is 'dev', expected one of train, val, test"),
    ],
)
def test_bad_rows(tmp_path, wrong, why):
    folder = write(tmp_path, [row(), row(**wrong)])
    with pytest.raises(ConfigError, match=why):
        comet(folder, bad_rows="error").examples("train")
    with pytest.warns(UserWarning, match=r"1 of 2 rows left out:\n  ATOMIC10X\.jsonl:2: "):
        assert len(comet(folder).examples("train")) == 1


def test_a_file_without_splits(tmp_path):
    unsplit = {k: v for k, v in row().items() if k != "split"}
    with pytest.raises(ConfigError, match="no column `split`"):
        comet(write(tmp_path, [unsplit])).examples("train")


def test_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"holds neither ATOMIC10X\.jsonl nor test\.tsv"):
        comet(tmp_path).examples("train")
    with pytest.raises(ConfigError, match="no such file or folder"):
        comet(tmp_path / "x").examples("train")
    with pytest.raises(ValidationError, match="this data is not on the hub"):
        Comet.Config()


def test_generation_stops_at_a_full_stop():
    assert Comet.generation == {"beams": 2, "max_new_tokens": 30, "stop": (".",)}
