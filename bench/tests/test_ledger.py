"""Entries of a suite: of its own runs, sent out, taken in, and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlalign_bench.entry import mean, read, write
from rlalign_study.core import ConfigError

from .conftest import call, ledger_of

KEYS = [
    "steep/rloo/0",
    "steep/rloo/1",
    "steep/reinforce/0",
    "steep/reinforce/1",
    "flat/rloo/0",
    "flat/reinforce/0",
]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "small-results/small.jsonl").read_text().splitlines()]


def test_a_finished_run_is_an_entry(made, entries):
    assert list(entries) == KEYS
    for row in rows(made):
        one = entries[row["key"] if "key" in row else f"{row['world']}/{row['arm']}/{row['seed']}"]
        assert (
            one.tokens == row["metrics"]["tokens"] == 48
        )  # 6 iterations of 8: the sixth reaches the budget of 44
        for name, value in one.metrics.items():
            assert value == mean(one.per_example[name])
            assert value == pytest.approx(row["metrics"][f"final.{name}"], rel=1e-4)
        assert set(one.metrics) == {"payout", "kl", "length"}
        assert one.kl == one.metrics["kl"]
        assert one.provenance.examples == 16
        assert all(length == 1 for length in one.per_example["length"])
        assert set(one.per_example["payout"]) <= (
            {1, 1.5, 1.75, 2, 2.25, 2.5} if one.task == "steep" else {*_flat()}
        )
        assert {"rlalign", "rlalign-plugin-table", "rlalign-plugin-toy-tasks"} <= set(one.provenance.plugins)
        assert one.provenance.pipeline["seed"] == one.seed
    hashes = {one.task: one.provenance.examples_hash for one in entries.values()}
    assert {one.provenance.examples_hash for one in entries.values()} == set(hashes.values())


def _flat() -> list[float]:
    from itertools import product

    import numpy as np

    paid = [float(np.float32(x)) for x in (1.2, 1.1, 1.0)]
    return [(a + b) / 2 for a, b in product(paid, paid)]


def test_what_is_missing_is_named(made):
    file = made / "small-results/small.jsonl"
    lines = file.read_text().splitlines()
    gone, failed = json.loads(lines[0]), json.loads(lines[1])
    kept = {key: failed[key] for key in ("stage", "world", "arm", "seed", "hash", "made")}
    file.write_text(
        "\n".join([json.dumps({**kept, "status": "failed", "why": "no luck"}), *lines[2:]]) + "\n"
    )
    ledger = ledger_of(made / "small.yaml")
    assert len(ledger.entries) == 4
    names = [f"{row['world']}/{row['arm']}/{row['seed']}" for row in (gone, failed)]
    assert sorted(ledger.missing) == sorted([f"{names[0]}: not run yet", f"{names[1]}: failed: no luck"])
    status, said = call("small.yaml", "export", "some.jsonl")
    assert status == 0
    assert "some.jsonl: 4 entries" in said and f"not in it: {names[1]}: failed: no luck" in said


def test_entries_go_from_one_machine_to_another(made, fresh, entries):
    status, said = call("small.yaml", "export", "mine.jsonl")
    assert (status, said) == (0, "mine.jsonl: 6 entries\n")
    assert {one.key: one for one in read(made / "mine.jsonl")} == entries
    assert call("small.yaml", "export", "mine.jsonl") == (
        2,
        "error: mine.jsonl: exists; move it away, or choose another name\n",
    )
    assert "no run is done, so there is nothing to export" in call(fresh, "export", "none.jsonl")[1]
    status, said = call(fresh, "add", "mine.jsonl")
    assert status == 0
    assert said.splitlines() == [f"taken in: {key}" for key in KEYS]
    ledger = ledger_of(fresh)
    assert ledger.entries == list(entries.values()) and ledger.missing == []
    # What is there already counts once, on both machines.
    assert call(fresh, "add", "mine.jsonl") == (0, "nothing new in it\n")
    assert call("small.yaml", "add", "mine.jsonl") == (0, "nothing new in it\n")
    (made / "small-results/entries").mkdir()
    write(made / "small-results/entries/mine.jsonl", entries.values())
    assert [one.key for one in ledger_of(made / "small.yaml").entries] == KEYS


def test_anyone_may_send_in_another_algorithm(made, fresh, entries, changed):
    pipeline = {**entries["steep/rloo/0"].provenance.pipeline, "algorithm": {"ppo": {}}}
    pipeline["rewards"] = [
        "bandit-payout",
        {"kl": {"coef": 0.1}},
    ]  # how much it pays for KL is its own affair
    one = changed(entries["steep/rloo/0"], {"pipeline": pipeline}, algorithm="ppo")
    write(made / "theirs.jsonl", [one])
    assert call("small.yaml", "add", "theirs.jsonl") == (0, "taken in: steep/ppo/0\n")
    assert [e.key for e in ledger_of(made / "small.yaml").entries] == [*KEYS[:4], "steep/ppo/0", *KEYS[4:]]


@pytest.mark.parametrize(
    ("made_with", "said", "expected"),
    [
        ({}, {"suite": "other"}, "is of the suite `other`, and this one is `small`"),
        ({}, {"task": "low"}, "there is no task `low`; the tasks are steep, flat"),
        (
            {"names": {"payout": "x"}},
            {},
            "its metrics is {'payout': 'x'}, and the suite's {'payout': 'bandit-payout'",
        ),
        ({"evaluate": {"split": "train"}}, {}, "its final measurement is {'split': 'train'}"),
        ({"budget": {}}, {}, "its budget is {}, and the suite's {'tokens': 44.0}"),
        (
            {"pipeline": {"policy": {"table": {"actions": 4}}}},
            {},
            "its pipeline has another policy than the suite's",
        ),
        ({"pipeline": {"phases": [{"task": "toy-numbers"}]}}, {}, "another task than"),
        ({"pipeline": {"phases": [{}, {"evaluate": {"use": ["x"]}}]}}, {}, "evaluate.use than the suite's"),
        ({"pipeline": {"phases": [{}, {}]}}, {}, "its KL is to the model that its last phase began with"),
        ({"pipeline": {"phases": "ab"}}, {}, "its pipeline is none"),
        ({"pipeline": {"models": {"reference": "x"}}}, {}, "another models.reference than"),
        ({"pipeline": {"seed": 5}}, {}, "its pipeline has the seed 5"),
        ({}, {"kl": 0.0}, "`kl` is 0.0, and its metric `kl`"),
        ({}, {"seed": 1}, "its pipeline has the seed 0"),
        ({"pipeline": {"seed": 5}}, {"seed": 5}, "its seed is 5, and the suite's are 0, 1: whoever picks"),
        ({"pipeline": {"train": {}}}, {}, "its pipeline is not that of the suite's `rloo`"),
        (
            {"pipeline": {"rewards": ["kl", {"mine:Generous": {}, "as": "bandit-payout"}]}},
            {"algorithm": "mine"},
            "another rewards than the suite's",
        ),
        (
            {"pipeline": {"rewards": ["bandit-payout", "kl", {"clip": {"low": 2.0}}]}},
            {"algorithm": "mine"},
            "another rewards than the suite's",
        ),
        (
            {"pipeline": {"train": {}}},
            {"algorithm": "mine", "tokens": 56},
            "it used 56 tokens, and the budget is 44",
        ),
        ({}, {"per_example": {}}, "has values by example of other metrics than"),
        ({}, {"metrics": {"kl": 0.0}, "per_example": {}, "kl": 0.0}, "and `payout` must be among them"),
        (
            {"models": {"policy": "12" * 32}},
            {"algorithm": "mine"},
            "steep/mine/0 began with other weights than",
        ),
        (
            {"examples_hash": "0" * 64},
            {"algorithm": "mine"},
            "was measured on other examples (16, 00000000…) than",
        ),
        (
            {"pipeline": {"train": {}}},
            {},
            "steep/rloo/0 is there already (the leaderboard); a run counts once",
        ),
    ],
)
def test_what_is_not_of_this_suite_is_refused(made, entries, changed, made_with, said, expected):
    """A file is taken in whole or not at all: the good entry in it is refused with the other."""
    one = entries["steep/rloo/0"]
    if "pipeline" in made_with:
        made_with = {**made_with, "pipeline": {**one.provenance.pipeline, **made_with["pipeline"]}}
    good = changed(entries["flat/rloo/0"], algorithm="good")
    bad = changed(one, made_with, **said)
    path = made / "theirs.jsonl"
    path.write_text(f"{good.line}\n{bad.line}\n")
    status, told = call("small.yaml", "add", path)
    assert status == 2
    assert told.startswith("error: ") and expected in told, told
    assert [one.key for one in ledger_of(made / "small.yaml").entries] == KEYS


def test_two_files_of_one_name_are_not_mixed_up(made, entries, changed):
    one = entries["steep/rloo/0"]
    for name in ("first", "second"):
        write(made / "theirs.jsonl", [changed(one, algorithm=name)])
        status, said = call("small.yaml", "add", "theirs.jsonl")
    assert status == 2
    assert "exists; give theirs.jsonl another name" in said


def test_numbers_that_contradict_each_other_stop_the_leaderboard(made, entries):
    """As when an entry was taken in, and its run made here afterwards with other numbers."""
    one = entries["steep/rloo/0"]
    (made / "small-results/entries").mkdir()
    values = {name: [x + 1 for x in values] for name, values in one.per_example.items()}
    metrics = {name: mean(some) for name, some in values.items()}
    other = replace(one, per_example=values, metrics=metrics, kl=metrics["kl"])
    write(made / "small-results/entries/theirs.jsonl", [other])
    with pytest.raises(
        ConfigError, match=r"steep/rloo/0 is there already \(run steep/rloo/0\).*\ndelete what"
    ):
        ledger_of(made / "small.yaml")


def test_entries_of_before_the_suite_was_changed_do_not_count(made, fresh, entries):
    write(made / "mine.jsonl", entries.values())
    assert call(fresh, "add", "mine.jsonl")[0] == 0
    fresh.write_text(fresh.read_text().replace("tokens: 44", "tokens: 88"))
    with pytest.raises(
        ConfigError, match=r"entries/mine.jsonl: steep/rloo/0: its budget is (?s:.*)\ndelete what"
    ):
        ledger_of(fresh)
