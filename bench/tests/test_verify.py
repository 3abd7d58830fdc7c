"""Entries made again from their provenance, and compared to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rlalign_bench.entry import mean, write
from rlalign_bench.ledger import Ledger, misfits
from rlalign_bench.verify import choose
from rlalign_study.core import ConfigError

from .conftest import call, ledger_of

OTHER = {"version": "0.0.9\x1b[2J", "code": "12" * 32}


@pytest.fixture
def sent(made, fresh, changed) -> Iterator[Any]:
    """Sends an entry to a machine where nothing is run, and verifies it there."""

    def send(one, *more: str) -> tuple[int, str]:
        ledger = ledger_of(fresh)
        assert misfits(ledger.suite, one) == []
        write(made / "theirs.jsonl", [one])
        assert call(fresh, "add", "theirs.jsonl")[0] == 0
        return call(fresh, "verify", "--runs", made / "again", *more)

    return send


def test_a_run_of_ones_own_is_the_same_again(made):
    status, said = call("small.yaml", "verify", "--entry", "steep/rloo/1", "--runs", "runs")
    assert status == 0, said
    assert said.endswith("steep/rloo/1: the same to the bit: 3 metrics, 48 values of examples\n")
    assert len(ledger_of(made / "small.yaml").entries) == 6  # what was made to compare counts nowhere
    assert call("small.yaml", "run", "--runs", "runs")[1].endswith("main: 6 of 6 runs are there\n")


def test_what_a_killed_verify_left_is_not_taken_for_a_new_run(made):
    row = next(
        row
        for row in map(json.loads, (made / "small-results/small.jsonl").read_text().splitlines())
        if (row["world"], row["arm"], row["seed"]) == ("steep", "rloo", 1)
    )
    row["stage"] = "verify"
    row["measured"]["final"]["metrics"]["payout"] += 1
    (made / "runs/verify+steep+rloo+1.json").write_text(json.dumps(row))
    status, said = call("small.yaml", "verify", "--entry", "steep/rloo/1", "--runs", "runs")
    assert status == 0, said


def test_without_a_name_a_random_one_is_taken(made, fresh):
    ledger = ledger_of(made / "small.yaml")
    assert len({choose(ledger, None).key for _ in range(100)}) > 1
    with pytest.raises(
        ConfigError, match="there is no entry `steep/x`; entries are called TASK/ALGORITHM/SEED: steep"
    ):
        choose(ledger, "steep/x")
    with pytest.raises(ConfigError, match="there are no entries yet"):
        choose(Ledger(ledger.suite, [], []), None)


def test_numbers_that_were_made_up_are_found(entries, changed, sent):
    one = entries["steep/rloo/0"]
    values = [*one.per_example["payout"]]
    values[3] += 0.25
    per_example = {**one.per_example, "payout": values}
    metrics = {**one.metrics, "payout": mean(values)}
    status, said = sent(changed(one, per_example=per_example, metrics=metrics))
    assert status == 1
    assert "steep/rloo/0: NOT the same (the entry, now):" in said
    assert (
        f"  payout: {mean(values)!r}, {one.metrics['payout']!r} (1 of 16 examples differ, by at most 0.25)"
        in said
    )
    assert (
        "code, packages, machine and data are the same, so the entry is not what its pipeline gives" in said
    )


def test_other_code_is_told_though_the_numbers_agree(entries, changed, sent):
    one = entries["steep/rloo/0"]
    plugins = {**one.provenance.plugins, "rlalign-plugin-table": OTHER}
    status, said = sent(
        changed(one, {"plugins": plugins, "hardware": {**one.provenance.hardware, "cores": 96}})
    )
    assert status == 0
    assert "the same to the bit" in said and "although it was made with something else:" in said
    assert "  plugins.rlalign-plugin-table.version: 0.0.9\\x1b[2J, 0.1.0" in said
    assert "  plugins.rlalign-plugin-table.code: 121212121212…, " in said
    assert "  hardware.cores: 96, " in said


def test_a_pipeline_of_somebody_else_runs_only_if_it_is_trusted(made, entries, changed, sent, fresh):
    """What others name is imported and run; here it is another learning rate, and the entry made up."""
    one = entries["steep/rloo/0"]
    theirs = {**one.provenance.pipeline, "train": {**one.provenance.pipeline["train"], "lr": 0.5}}
    status, said = sent(changed(one, {"pipeline": theirs}, algorithm="mine"))
    assert status == 2
    assert "steep/mine/0: its pipeline is none of this suite's own" in said and "--trust" in said
    status, said = call(fresh, "verify", "--trust", "--runs", made / "again")
    assert status == 1
    assert "NOT the same" in said


def test_a_pipeline_that_fails_is_told(entries, changed, sent):
    one = entries["steep/rloo/0"]
    theirs = {**one.provenance.pipeline, "algorithm": "nowhere:Mine"}
    status, said = sent(changed(one, {"pipeline": theirs}, algorithm="mine"), "--trust")
    assert status == 1
    assert "steep/mine/0: could not be made again: ConfigError: " in said and "nowhere" in said


def test_a_run_that_its_seconds_ended_ends_where_it_did(made, fresh, entries, changed):
    """Of a suite with a budget of seconds: 48 tokens were what they sufficed for."""
    for file in (made / "small.yaml", fresh):
        file.write_text(file.read_text().replace("tokens: 44", "seconds: 100"))
    one = changed(entries["steep/rloo/0"], {"budget": {"seconds": 100.0}})
    write(made / "theirs.jsonl", [one])
    assert call(fresh, "add", "theirs.jsonl")[0] == 0
    status, said = call(fresh, "verify", "--runs", made / "again")
    assert status == 0, said
    assert "the same to the bit" in said
