"""reddit-comments: what is drawn, filtered and split, and what a comment reads like."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
from pydantic import ValidationError

from rlalign import ConfigError
from rlalign_plugin_dialog_tasks import RedditComments
from rlalign_plugin_dialog_tasks.reddit import cleaned

COLUMNS = ("id", "text", "score", "parent_text")


def write(folder: Path, up: list[Any], down: list[Any]) -> Path:
    for name, rows in (("positive", up), ("negative", down)):
        with (folder / f"comments_{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    return folder


def reddit(folder: Path, **options: Any) -> RedditComments:
    return RedditComments(RedditComments.Config(path=folder, **options))


def comments(count: int, score: int = 1) -> list[tuple[Any, ...]]:
    return [(f"{score}-{i}", f"text {i}", score * (i + 1), f"parent {i}") for i in range(count)]


def ids(task: RedditComments) -> list[str]:
    return [id for found in everything(task).values() for id in found]


def everything(task: RedditComments) -> dict[str, list[str]]:
    return {split: [e.id for e in task.examples(split)] for split in task.splits()}


def test_a_comment(tmp_path):
    up = [("a", " See\n\nhttps://www.example.org/a?b=c now ", 7, "What\tis  it?"), *comments(5)]
    task = reddit(write(tmp_path, up, comments(5, -1)), train="both")
    (example,) = [e for split in task.splits() for e in task.examples(split) if e.id == "a"]
    assert example.prompt == "What is it?<|endoftext|>"
    assert (
        example.responses == ("See <URL> now",) and example.scores == (7.0,) and example.finished == (True,)
    )
    assert example.meta == {
        "parent": "What is it?",
        "votes": "up",
        "place": "comments_positive.csv:2",
        "references": ["See <URL> now"],
    }


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("http://a.io", "<URL>"),
        ("[a](https://en.example.com/wiki/A_b) x", "[a](<URL>) x"),
        ("see https://x.yz/a;b=%20#c, ok", "see <URL>, ok"),
        ("ftp://a.io and www.a.io", "ftp://a.io and www.a.io"),
        ("https://localhost/x", "https://localhost/x"),
        ("  a \r\n b\t", "a b"),
    ],
)
def test_cleaning(text, read):
    assert cleaned(text) == read


def test_splits_are_drawn_with_the_published_seed(tmp_path):
    task = reddit(write(tmp_path, comments(60), comments(40, -1)), held_out=5)
    found = everything(task)
    order = {n: numpy.random.RandomState(901).permutation(n).tolist() for n in (60, 40)}
    up, down = [f"1-{i}" for i in order[60]], [f"-1-{i}" for i in order[40]]
    assert found == {"test": up[:5] + down[:5], "val": up[5:10] + down[5:10], "train": up[10:]}
    assert everything(reddit(tmp_path, held_out=5, train="down"))["train"] == down[10:]
    assert everything(reddit(tmp_path, held_out=5, train="both"))["train"] == up[10:] + down[10:]
    drawn = everything(reddit(tmp_path, held_out=4, draws=20))
    chosen = numpy.random.RandomState(901).choice(60, 20, replace=False)
    assert drawn["test"][:4] + drawn["val"][:4] + drawn["train"] == [f"1-{i}" for i in chosen]
    few = everything(reddit(tmp_path))
    assert (len(few["test"]), len(few["val"]), len(few["train"])) == (
        12 + 8,
        12 + 8,
        36,
    )  # no more than a fifth
    assert [len(v) for v in everything(reddit(tmp_path, limit=3)).values()] == [3, 6, 6]


def test_both_kinds_joined_are_counted_unread_and_drawn_by_what_they_are(tmp_path):
    joined = reddit(write(tmp_path, comments(60), comments(40, -1)), train="both").examples("train")
    assert joined.response_counts.tolist() == [1] * len(joined)
    assert len(set(joined.row_keys.tolist())) == len(joined)


def test_comments_without_text_or_parent_are_left_out(tmp_path):
    odd = [("x", "", 3, "p"), ("y", "NaN", 3, "p"), ("z", "t", 3, "null"), ("w", "t", 3, "  ")]
    folder = write(tmp_path, [*comments(5), *odd], comments(5, -1))
    with pytest.warns(UserWarning, match=r"5 of 9 examples kept; left out:\n  4 have no text or no parent"):
        assert not {"x", "y", "z", "w"} & set(ids(reddit(folder)))


def test_long_ones_are_left_out(tmp_path):
    long = "word " * 101
    odd = [("x", long, 3, "p"), ("y", "t", 3, long), ("z", "word " * 100, 3, "p")]
    folder = write(tmp_path, [*comments(5), *odd], comments(5, -1))
    with pytest.warns(
        UserWarning, match=r"6 of 8 drawn comments kept; left out:\n  2 have more than 100 words"
    ):
        kept = ids(reddit(folder))
    assert "z" in kept and "x" not in kept and "y" not in kept
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "x" in ids(reddit(folder, max_words=None))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (("x", "t", -3, "p"), "`score` is -3 in comments_positive.csv"),
        (("x", "t", 0, "p"), "`score` is 0"),
        (("x", "t", "nan", "p"), "`score` is nan"),
        (("x", "t", "", "p"), "`score` is text, expected a number"),
        (("x", "a<|endoftext|>b", 3, "p"), r"holds <\|endoftext\|>"),
        (("1-0", "t", 3, "p"), r"the id `1-0` is that of comments_positive\.csv:\d too"),
    ],
)
def test_bad_rows(tmp_path, row, why):
    folder = write(tmp_path, [*comments(5), row], comments(5, -1))
    with pytest.raises(ConfigError, match=why):
        reddit(folder, bad_rows="error").examples("train")
    with pytest.warns(UserWarning, match=why):
        kept = ids(reddit(folder))
    assert len(kept) == len(set(kept))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no file `comments_positive\.csv`"):
        reddit(tmp_path).examples("train")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ConfigError, match="give the folder that holds"):
        reddit(tmp_path / "x.csv").examples("train")
    with pytest.raises(ValidationError, match="this data is not on the hub"):
        RedditComments.Config()
