"""Entries: written, read, and refused in plain words where they do not add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlalign_bench.entry import Entry, Provenance, read, sha256, write
from rlalign_study.core import ConfigError


def provenance(**said: Any) -> Provenance:
    plugin = {"version": "0.1.0", "code": "ab" * 32}
    made = Provenance(
        pipeline={"seed": 0, "train": {"lr": 0.1}},
        evaluate={"examples": 2},
        names={"reward": "bandit-payout"},
        budget={"tokens": 100.0},
        overrides={"train.lr": 0.1},
        examples=2,
        examples_hash="cd" * 32,
        data={"bandit/train": "f" * 64},
        plugins={"rlalign": plugin, "rlalign-plugin-table": plugin},
        packages={"torch": "2.13.0"},
        hardware={"device": "cpu", "threads": 1},
        date="2026-01-01",
    )
    made = replace(made, **said)
    return made if "hash" in said else replace(made, hash=made.what)


def entry(**said: Any) -> Entry:
    known: dict[str, Any] = {
        "suite": "demo",
        "task": "bandit",
        "algorithm": "rloo",
        "seed": 0,
        "metrics": {"reward": 1 / 3, "diversity": 0.5},
        "per_example": {"reward": [0.0, 2 / 3]},
        "kl": 0.1,
        "tokens": 128,
        "seconds": 1.5,
        "provenance": provenance(),
    }
    return Entry(**{**known, **said})


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        read(path)
    return str(raised.value)


def test_entries_come_back_to_the_bit(tmp_path):
    some = [
        entry(metrics={"reward": 0.1 + 0.2, "diversity": 1e-17}, per_example={"reward": [0.3, 0.1 + 0.2]}),
        entry(seed=1, kl=None),
    ]
    write(tmp_path / "some.jsonl", some)
    assert read(tmp_path / "some.jsonl") == some
    assert [path.name for path in tmp_path.iterdir()] == ["some.jsonl"]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"metrics": {"reward": 0.4}}, "metrics.reward is 0.4, but the mean of its 2 values is 0.333"),
        ({"per_example": {"reward": [1 / 3]}}, "per_example.reward: 1 values, but 2 examples were measured"),
        ({"per_example": {"rouge": [0.0, 1.0]}}, "per_example.rouge: `metrics` has no `rouge`"),
        ({"metrics": {}, "per_example": {}}, "metrics: there are none"),
        ({"task": "a/b"}, "task: 'a/b' is no name"),
        ({"algorithm": "<b>"}, "algorithm: '<b>' is no name"),
        ({"algorithm": "a\x1b[2J"}, "is no name"),
        ({"seed": -1}, "seed: -1 is below 0"),
        ({"tokens": 10**400}, "nor tokens above"),
        ({"per_example": {"reward": [1e308, 1e308]}}, "larger than anything that is measured"),
        ({"tokens": -1}, "cannot be below 0"),
        ({"provenance": provenance(hash="0" * 64)}, "one of them was changed"),
        ({"provenance": provenance(examples_hash="beef")}, "examples_hash: expected 64 hexadecimal digits"),
        ({"provenance": provenance(packages={})}, "provenance.packages: is missing"),
        (
            {"provenance": provenance(plugins={"x": {"version": "1"}})},
            "plugins.x: expected `version`, and `code`",
        ),
        (
            {"provenance": provenance(plugins={"x": {"version": "1", "code": "0" * 64}})},
            "rlalign itself is not",
        ),
    ],
)
def test_what_cannot_be_true_is_refused_with_its_place(tmp_path, said, expected):
    write(tmp_path / "some.jsonl", [entry(seed=7), entry(**said)])
    text = refused(tmp_path / "some.jsonl")
    assert expected in text
    assert text.startswith(f"{tmp_path}/some.jsonl:2: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('"seed":0,"metrics"', '"seed":1,"metrics"'), "`seal` is not the hash of the entry"),
        (('"tokens":128', '"tokens":"many"'), "tokens: "),
        (('"tokens":128', '"tokens":128,"stars":5'), "stars: this key is not known"),
        (('"tokens":128,', ""), "tokens: is missing"),
        (('"examples":2', '"examples":2,"eyes":2'), "provenance.eyes: this key is not known"),
        (('"tokens":128', '"tokens":NaN'), "tokens: "),
        (('"kl":0.1', '"kl":NaN'), "kl: nan is not finite"),
    ],
)
def test_what_was_changed_or_damaged_is_refused(tmp_path, change, expected):
    (tmp_path / "some.jsonl").write_text(entry().line.replace(*change))
    assert expected in refused(tmp_path / "some.jsonl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no entries"),
        ('{"suite": "demo"', "a line was cut off?"),
        ("[1]", "expected an entry"),
        ("[" * 100_000, "cut off?"),
    ],
)
def test_other_files_are_refused(tmp_path, text, expected):
    (tmp_path / "some.jsonl").write_text(text)
    assert expected in refused(tmp_path / "some.jsonl")
    assert "cannot be read" in refused(tmp_path / "nowhere.jsonl")


def test_words_of_others_do_not_reach_the_terminal_as_they_are(tmp_path):
    (tmp_path / "some.jsonl").write_text(entry().line.replace('"tokens":128', '"tokens":128,"\\u001b[2J":5'))
    assert "\\x1b[2J: this key is not known" in refused(tmp_path / "some.jsonl")


def test_entries_that_cannot_be_true_together_are_refused(tmp_path):
    write(tmp_path / "some.jsonl", [entry(), entry()])
    assert f"bandit/rloo/0 is there already ({tmp_path}/some.jsonl:1); a run counts once" in refused(
        tmp_path / "some.jsonl"
    )
    other = entry(seed=1, provenance=provenance(examples_hash="ef" * 32))
    write(tmp_path / "some.jsonl", [entry(), other])
    assert "bandit/rloo/1 was measured on other examples (2, efefefef…) than bandit/rloo/0" in refused(
        tmp_path / "some.jsonl"
    )
    write(tmp_path / "some.jsonl", [entry(), entry(seed=1, metrics={"reward": 1 / 3})])
    assert "bandit/rloo/1 has other metrics than bandit/rloo/0" in refused(tmp_path / "some.jsonl")


def test_the_seal_holds_whatever_the_order_of_keys(tmp_path):
    said = json.loads(entry().line)
    assert said.pop("seal") == sha256(dict(reversed(said.items())))
