"""The values of a page: every figure has its place, long curves are made coarser, seeds are put together."""

from __future__ import annotations

import json
import math

import pytest

from rlalign_report import compare, names
from rlalign_report.data import page_data
from rlalign_report.run import Run
from rlalign_study.stats import estimate

from .written import evaluation, iteration, sample, whole, written


def looked(*folders):
    runs = [Run(folder) for folder in folders]
    for run in runs:
        run.look()
    return runs


def charts(data):
    return {
        chart["name"]: (section["key"], chart) for section in data["sections"] for chart in section["charts"]
    }


@pytest.mark.parametrize(
    "name, section",
    [
        ("reward/total", "reward"),
        ("reward/kl", "reward"),
        ("rhymes/syllables", "reward"),
        ("kl/k1", "kl"),
        ("ppo/kl", "kl"),
        ("sampler/kl", "sampler"),
        ("ppo/clip_fraction", "policy"),
        ("ppo/value_clip_fraction", "value"),
        ("ppo/entropy", "policy"),
        ("ppo/explained_variance", "value"),
        ("lr", "policy"),
        ("length", "lengths"),
        ("groups/tied", "groups"),
        ("time/reward/rhymes", "time"),
        ("machine/memory", "memory"),
        ("replay/age", "sampler"),
        ("a-plugin/that-nobody-knows", "other"),
        ("eval/kl/k1", "evaluation"),
    ],
)
def test_where_figures_belong(name, section):
    assert names.section(name, {"rhymes"}) == section
    assert section in {one.key for one in names.SECTIONS}


def test_every_figure_of_a_run_has_a_chart(tmp_path):
    rows = [*whole(), iteration(41, **{"stranger/oddity": 3.0, "": 1.0})]
    found = charts(page_data(looked(written(tmp_path / "run", rows))))
    logged = {name for row in rows for name in row} - {"phase", "repeat", "iteration", "step"}
    assert set(found) == logged
    assert found["stranger/oddity"][0] == "other"
    kinds = [line.get("evaluation", False) for line in found["reward/total"][1]["lines"]]
    assert kinds == [False, True]  # beside the evaluation of the same thing


def test_a_long_curve_is_made_coarser_and_it_is_said(tmp_path):
    rows = [iteration(n, loss="nan" if n == 5 else float(n)) for n in range(1, 2001)]
    data = page_data(looked(written(tmp_path / "run", rows)))
    (line,) = charts(data)["loss"][1]["lines"]
    assert len(line["y"]) == len(data["axes"]["t0"]["iteration"]) == 667
    assert (line["y"][0], line["low"][0], line["high"][0]) == (2.0, 1.0, 3.0)
    assert line["y"][1] == 5.0  # of 4 and 6
    assert data["axes"]["t0"]["iteration"][-1] == 2000
    assert data["limits"] == [
        "run: a point of its curves is the mean of 3 iterations, in a band from the least to the greatest"
    ]


def test_the_best_evaluation(tmp_path):
    values = {0: 9.0, 10: 1.0, 20: 3.0, 30: 2.0}
    rows = []
    for n in range(31):
        rows += [iteration(n)] if n else []
        if n in values:
            rows.append(evaluation(n, **{"eval/total": values[n], "eval/perplexity": 10 - values[n]}))
    (run,) = page_data(looked(written(tmp_path / "one", rows)))["runs"]
    assert (run["best"]["name"], run["best"]["value"], run["best"]["at"]) == ("eval/total", 3.0, 20)
    low = written(tmp_path / "two", rows, checkpoints={"best": {"eval/perplexity": "low"}})
    (run,) = page_data(looked(low))["runs"]
    assert (run["best"]["name"], run["best"]["value"], run["best"]["at"]) == ("eval/perplexity", 7.0, 20)
    (run,) = page_data(looked(written(tmp_path / "three", [iteration(1)])))["runs"]
    assert run["best"] is None


def test_seeds_of_a_pipeline_are_a_group_with_an_interval(tmp_path):
    def rows(shift, count=40):
        return [
            {**row, **({"loss": shift} if "tokens" in row else {"eval/total": shift})} for row in whole(count)
        ]

    folders = [written(tmp_path / f"calm-{seed}", rows(seed), seed=seed) for seed in (1, 2, 3)]
    folders += [
        written(tmp_path / f"hot-seed{seed}", rows(seed + 5.0, 30), seed=seed, train={"lr": 0.5})
        for seed in (1, 2)
    ]
    data = page_data(looked(*folders))
    assert [(group["name"], group["runs"]) for group in data["groups"]] == [
        ("calm", [0, 1, 2]),
        ("hot", [3, 4]),
    ]
    assert data["title"] == "calm · hot"
    means = [line for line in charts(data)["loss"][1]["lines"] if line.get("mean")]
    known = estimate([1.0, 2.0, 3.0])
    assert (means[0]["y"][0], means[0]["low"][0]) == (2.0, pytest.approx(known.low, rel=1e-5))
    assert len(means[1]["y"]) == 30
    assert data["differences"] == [["train.iterations", ["40", "–"]], ["train.lr", ["0.1", "0.5"]]]
    total = data["comparison"][0]
    assert total["name"] == "eval/total" and [cell["mean"] for cell in total["cells"]] == [2.0, 6.5]
    assert total["cells"][0]["count"] == 3
    assert total["p"][1] == 0.0  # each seed is better by exactly as much


def test_the_mean_of_seeds_ends_with_the_shortest(tmp_path):
    folders = [written(tmp_path / f"run-{n}", whole(n), seed=n) for n in (20, 40)]
    data = page_data(looked(*folders))
    assert data["limits"] == [
        "run: its mean ends at iteration 20, as its shortest run does; the longest has 40"
    ]
    assert len(data["axes"]["eg0"]["iteration"]) == 3


def test_groups_of_one_name_are_told_apart(tmp_path):
    a, b = (
        written(tmp_path / place / "run", whole(), train={"lr": lr}) for place, lr in (("a", 1), ("b", 2))
    )
    assert [group.runs for group in compare.groups(looked(a, b))] == [(0,), (1,)]


def test_nothing_yet(tmp_path):
    data = page_data(looked(tmp_path / "nowhere"))
    assert data["runs"][0]["state"] == "waiting" and data["sections"] == []


def test_everything_is_json(tmp_path):
    rows = [*whole(), iteration(41, loss="inf", lr="nan"), evaluation(41, **{"eval/total": "-inf"})]
    samples = [sample(0, "p", "a", scores={"rhymes": "nan"}), sample(0, "p", "\ud800")]
    folder = written(tmp_path / "run", rows, samples)
    json.dumps(page_data(looked(folder)), allow_nan=False)


def test_where_time_went(tmp_path):
    (run,) = page_data(looked(written(tmp_path / "run", whole())))["runs"]
    assert run["times"] == [["rollout", 60.0], ["other", 20.0], ["evaluate", 5.0]]


def test_what_an_iteration_cost_stands_beside_what_was_estimated(tmp_path):
    folder = written(tmp_path / "run", whole(2))
    measured = {"rollout": 0.25, "iteration": 1.0, "memory": 3 * 2**30, "odd": "x"}
    estimated = {"rollout": 0.2, "iteration": math.inf, "memory": 2**30, "odd": 1}
    said = {
        "ppo": {"measured": measured, "estimated": estimated, "unit": "seconds"},
        "odd": 3,
        "odder": {"measured": []},
    }
    (folder / "costs.json").write_text(json.dumps(said))
    (run,) = looked(folder)
    (found,) = [part for part in page_data([run])["runs"][0]["provenance"] if "estimated" in part["title"]]
    assert found == {
        "title": "An iteration of ppo took (estimated)",
        "rows": [["rollout, seconds", "0.25 (0.2)"], ["memory at most", "3 GiB (1 GiB)"]],
    }
    (folder / "costs.json").write_text("[")
    assert run.look() and any("costs.json: is no JSON" in note for note in run.notes)
    assert not [part for part in page_data([run])["runs"][0]["provenance"] if "estimated" in part["title"]]


def test_hashes_are_shortened_and_words_are_not(tmp_path):
    folder = written(tmp_path / "run", whole(2))
    lock = json.loads((folder / "lock.json").read_text())
    lock["data"] = {"hashed": "0f" * 32, "told": 'toy-reviews 1 {"size": 512}', "long": "x" * 1000}
    (folder / "lock.json").write_text(json.dumps(lock))
    (run,) = looked(folder)
    (found,) = [part for part in page_data([run])["runs"][0]["provenance"] if part["title"] == "Data"]
    assert dict(found["rows"]) == {
        "hashed": "0f" * 8,
        "told": 'toy-reviews 1 {"size": 512}',
        "long": "x" * 200 + "…",
    }
