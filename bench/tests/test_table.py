"""The leaderboard of made-up entries: what it says, what it does not say, and the same for any order."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlalign_bench.entry import Entry, Provenance
from rlalign_bench.standings import Standings
from rlalign_bench.suite import Score
from rlalign_bench.table import WIDTH, table
from rlalign_study.core import ConfigError

SCORES = {
    "summaries": Score(metric="match", worst=0.2, best=0.8),
    "edits": Score(metric="distance", worst=10, best=2),
}
"""Two tasks; of the second less is better."""
GAINS = {"start": 0.0, "ppo": 0.2, "rloo": 0.4}
KL = {"start": 0.0, "ppo": 3.0, "rloo": 2.0}


def entry(task: str, algorithm: str, seed: int, values: Sequence[float], **said: Any) -> Entry:
    metric = SCORES[task].metric
    known: dict[str, Any] = {
        "suite": "toy",
        "metrics": {metric: float(np.mean(values)), "diversity": 0.5, "kl": KL[algorithm]},
        "per_example": {metric: [float(value) for value in values]},
        "kl": KL[algorithm],
        "tokens": 12_500,
        "seconds": 40.0,
        "provenance": Provenance(examples=len(values), hardware={"device": "cpu"}),
    }
    return Entry(task=task, algorithm=algorithm, seed=seed, **{**known, **said})


def made(seeds: int = 3, examples: int = 20, noise: float = 0.02) -> list[Entry]:
    """Two tasks × three algorithms × seeds; examples differ by much, and all share them."""
    rng = np.random.default_rng(0)
    every = []
    for task, about in SCORES.items():
        hard = 0.1 * rng.normal(size=examples)
        for algorithm, gain in GAINS.items():
            for seed in range(seeds):
                share = 0.2 + gain + hard + noise * rng.normal() + noise * rng.normal(size=examples)
                values = about.worst + (about.best - about.worst) * share
                every.append(entry(task, algorithm, seed, values))
    return every


def without(entries: list[Entry], task: str, algorithm: str, seeds: Sequence[int] = range(99)) -> list[Entry]:
    return [one for one in entries if (one.task, one.algorithm) != (task, algorithm) or one.seed not in seeds]


def row(text: str, algorithm: str) -> list[str]:
    """The cells of an algorithm in the first table that has it."""
    line = next(line for line in text.splitlines() if line.startswith(f"| `{algorithm}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_order_of_entries_changes_nothing():
    entries = made()
    shuffled = random.Random(0).sample(entries, len(entries))
    assert table(entries, SCORES) == table(shuffled, SCORES)


def test_what_it_says():
    texts = table(made(), SCORES)
    whole, block = texts["leaderboard.md"], texts["readme.md"]
    assert whole.startswith("# Leaderboard of toy\n\n18 runs, 12 min of processor time, 225k tokens.\n")
    assert block.strip() in whole
    overall, by_task = block.split("By task")
    assert re.findall(r"^\| `(\w+)`", overall, re.M) == ["rloo", "ppo", "start"]
    assert row(overall, "rloo")[2:] == ["1.0 [1.0, 1.0]", "6", "25k", "80"]
    assert "*distance ↓*" in by_task
    assert row(by_task, "rloo")[1].startswith("**0.") and row(by_task, "rloo")[2].startswith("**5.")
    assert "**" not in "".join(row(by_task, "start"))
    assert "Mean of 20 examples, on the scale 0 is 10 and 1 is 2; less is better." in whole
    assert re.search(r"\| +diversity \|", whole) and not re.search(r"\| +kl \|", whole)  # that has its column
    assert not set("–¹²") & set(by_task)  # of the marks only what is used
    assert "## Planned, and not there" not in whole


def test_a_difference_that_is_shown_has_its_mark_and_chance_has_none():
    block = table(made(seeds=5, noise=0.005), SCORES)["readme.md"]
    by_task = block.split("By task")[1]
    assert ["▼" in cell for cell in row(block, "start")[1:3]] == [True, False]
    assert ["▼" in cell for cell in row(by_task, "start")] == [False, True, True]
    assert "▼" not in "".join(row(by_task, "rloo"))
    alike = [entry(task, name, seed, [0.3, 0.5]) for task in SCORES for name in GAINS for seed in range(3)]
    assert "▼" not in table(alike, SCORES)["readme.md"].replace("▼ shown", "")


def test_what_is_missing_is_shown_as_missing():
    entries = without(without(made(), "edits", "ppo"), "summaries", "start", [2])
    whole = table(entries, SCORES, ["edits/ppo/0: failed: out of memory"])["leaderboard.md"]
    assert "`ppo` has no runs of `edits`, and so no overall score." in whole
    overall, by_task = whole.split("By task")[:2]
    assert "| `ppo`" not in overall
    assert row(by_task, "ppo")[2] == "–"
    assert row(by_task, "start")[1].endswith("(2/3)")
    assert whole.endswith("## Planned, and not there\n\n- edits/ppo/0: failed: out of memory\n")


def test_tasks_without_a_run_are_named_and_do_not_count():
    scores = {**SCORES, "dialogue": Score(metric="match", worst=0, best=1)}
    whole = table(made(), scores)["leaderboard.md"]
    assert "No runs of `dialogue`." in whole
    assert row(whole, "rloo")[3] == "6"


def test_nothing_to_compare_is_said():
    alone = [one for one in made() if one.algorithm == "ppo"]
    whole = table(alone, SCORES)["leaderboard.md"]
    assert "there is nothing to compare: fewer than two algorithms" in whole
    assert "**" not in whole and "Pair by pair" not in whole


def test_one_seed_and_metrics_that_are_no_means_are_marked():
    block = table(made(seeds=1), SCORES)["readme.md"]
    assert "¹ one run: the interval says nothing about other seeds." in " ".join(block.split())
    whole = [
        entry("summaries", name, seed, [0.3, 0.5], metrics={"match": 0.4 + seed / 50}, per_example={})
        for name in GAINS
        for seed in range(3)
    ]
    block = table(whole, SCORES)["readme.md"]
    assert "*match* ²" in block
    only = [entry("summaries", "ppo", 0, [0.3], metrics={"match": 0.4}, per_example={})]
    assert row(table(only, SCORES)["readme.md"], "ppo")[1] == "0.400 ¹"  # no interval at all


def test_algorithms_that_share_no_seed_are_not_compared():
    entries = [one for one in made(seeds=4) if (one.seed < 2) == (one.algorithm == "rloo")]
    standings = Standings(entries, SCORES)
    assert {(one.ours, one.theirs) for one in standings.pairs} == {("ppo", "start")}
    assert set(standings.behind) == set()
    assert standings.overall["rloo"].score.mean > standings.overall["ppo"].score.mean


def test_tables_fit_a_hundred_columns_however_many_there_are_and_long_their_names_are():
    more = {f"a-rather-long-name-of-a-metric-{n}": 1234.5 for n in range(5)}
    every = [
        replace(one, algorithm=f"{one.algorithm}-{word}", metrics={**one.metrics, **more})
        for one in made(examples=5)
        for word in ("supervised+nlpo-with-mask", "a-lol-reference-free")
    ]
    texts = table(every, SCORES)
    assert (
        max(len(line) for name in texts if name.endswith("md") for line in texts[name].splitlines()) <= WIDTH
    )


def test_json_and_csv_have_the_same_numbers():
    texts = table(without(made(), "edits", "ppo"), SCORES)
    said = json.loads(texts["leaderboard.json"])
    rows = list(csv.DictReader(io.StringIO(texts["leaderboard.csv"])))
    assert len(rows) == 5
    for one in rows:
        cell = said["tasks"][one["task"]]["algorithms"][one["algorithm"]]
        assert float(one["mean"]) == cell["score"]["mean"]
        assert float(one["scaled"]) == pytest.approx(cell["scaled"])
        assert (one["frontier"] == "True") is cell["frontier"]
        assert one["p"] == ("" if cell["behind_best"] is None else str(cell["behind_best"]["p"]))
    assert said["missing"] == {"ppo": ["edits"]}
    assert said["tasks"]["edits"]["less_is_better"] is True
    alone = json.loads(table([entry("summaries", "ppo", 0, [0.3])], SCORES)["leaderboard.json"])
    assert alone["tasks"]["summaries"]["algorithms"]["ppo"]["score"]["low"] is None  # no NaN in JSON


def test_the_frontier_knows_what_is_better():
    standings = Standings(made(), SCORES)
    assert standings.frontier("summaries") == standings.frontier("edits") == {"start", "rloo"}
    unknown = [replace(one, kl=None) for one in made()]
    assert Standings(unknown, SCORES).frontier("edits") == set()


def test_seconds_of_several_machines_are_called_so():
    one, *others = made()
    other = Provenance(examples=20, hardware={"device": "cuda"})
    said = table([replace(one, provenance=other), *others], SCORES)["leaderboard.md"]
    assert "made on 2 kinds of machines, and so their seconds do not compare" in " ".join(said.split())


PPO = entry("edits", "ppo", 0, [1.0])


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "there are no entries"),
        ([PPO, replace(PPO, suite="other")], "of one suite, found entries of other, toy"),
        ([PPO, PPO], "edits/ppo: two entries have the seed 0; a run counts once"),
        ([PPO, entry("edits", "ppo", 1, [1, 2])], "numbers of values of `distance`: seed 0 1, seed 1 2"),
        ([PPO, entry("edits", "rloo", 0, [1, 2])], "some entries have 1 values of `distance` and others 2"),
        ([replace(PPO, metrics={"bleu": 1.0})], "edits/ppo/0: has no metric `distance`; it has bleu"),
        ([entry("edits", "ppo", 0, [math.nan])], "edits/ppo/0: `distance` is not finite"),
    ],
)
def test_what_does_not_compare_is_refused_in_words(entries, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        table(entries, SCORES)


def test_a_task_that_the_suite_does_not_rank_is_refused():
    with pytest.raises(ConfigError, match="nothing says which metric ranks the task `edits`"):
        table([PPO], {"summaries": SCORES["summaries"]})


# -- figures ----------------------------------------------------------------------------------------------


def test_figures_are_the_same_each_time(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from rlalign_bench.figures import plot

    entries = made(seeds=2, examples=5)
    paths = plot(entries, SCORES, tmp_path / "one")
    assert [path.name for path in paths] == ["scores.svg", "overall.svg", "profile.svg", "frontier.svg"]
    for path in paths:
        text = path.read_text()
        assert all(f">{name}<" in text for name in GAINS)
    again = plot(entries[::-1], SCORES, tmp_path / "two")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_figures_without_data_are_left_out(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from rlalign_bench.figures import plot

    alone = [replace(one, kl=None) for one in made(seeds=1) if one.algorithm == "ppo"]
    assert [path.name for path in plot(alone, SCORES, tmp_path, format="png")] == ["scores.png"]
