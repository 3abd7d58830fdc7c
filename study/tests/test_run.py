"""Studies that are run: end to end, killed, gone on with, over their memory, wrong."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from rlalign_study import plan, runner
from rlalign_study.command import study as command
from rlalign_study.core import Cluster, ConfigError
from rlalign_study.rows import Results, Row

EXAMPLE = Path(__file__).parents[1] / "examples/bandit.yaml"


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "small-results/small.jsonl").read_text().splitlines()]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Runs do their work below the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_from_plan_to_report(work):
    """The whole of it but for its size: two seeds, a fifth of the steps."""
    text = EXAMPLE.read_text().replace("seeds: 5", "seeds: 2").replace("iterations: 20", "iterations: 4")
    text = text.replace("evaluate: {every: 5, examples: 64", "evaluate: {every: 2, examples: 8")
    text = text.replace("  two: {set", "  # two: {set")
    (work / "bandit.yaml").write_text(text)
    status, said = call("bandit.yaml", "--jobs", 2)
    assert status == 0, said
    assert "tuning    three                8 runs of 2 arms, 0 done" in said
    assert "12 runs are left, about 6.0 s with --jobs 2 (by the study file's `seconds`)" in said
    assert set(re.findall(r"^\d+/(\d+) ", said, re.M)) == {"8", "4"}  # each stage counts its own
    found = [json.loads(line) for line in (work / "bandit-results/bandit.jsonl").read_text().splitlines()]
    assert len(found) == 12
    for one in found:
        assert one["status"] == "done"
        assert one["curve"]["step"] == [0, 2, 4]
        assert one["own"]["step"] == [2, 4]
        assert one["curve"]["tokens"] == [0, 128, 256]
        assert one["metrics"]["steps"] == 4
        assert one["metrics"]["final.reward"] > 1
        assert one["metrics"]["memory_gb"] > 0.1
        assert one["overrides"]["seed"] == one["seed"]
        assert {"torch", "device", "rlalign", "rlalign-plugin-table"} <= set(one["code"])
        assert {"commit", "machine", "date", "python", "rlalign-study", "packages"} <= set(one["made"])
    table = (work / "bandit-results/table.md").read_text()
    assert "| arm | final reward | KL | CPU s | runs |" in table
    assert (work / "bandit-results/readme.md").read_text().startswith("| world | arm | final reward |")
    assert list((work / "runs/bandit").glob("[a-z]*")) == []  # run folders are deleted
    status, said = call("bandit.yaml", "plan", "run")
    assert status == 0
    assert "0 runs are left" in said
    assert "tuning: 8 of 8 runs are there" in said


def test_a_killed_study_goes_on_without_repeating_what_is_done(written, work):
    written("seeds: 3".replace("seeds", "interval: t\nseconds"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("rlalign")), "study", "small.yaml", "run"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    results = work / "small-results/small.jsonl"
    for line in process.stdout:
        if line.startswith("1/4"):
            break
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []  # nothing goes on behind its back
    before = results.read_text()
    done = before.count("\n")
    assert 1 <= done < 4
    status, said = call("small.yaml", "run")
    assert status == 0
    assert f"main: {done} of 4 runs are there" in said
    assert results.read_text().startswith(before)
    assert len({(row["arm"], row["seed"]) for row in rows(work)}) == len(rows(work)) == 4


def test_a_run_over_its_memory_is_killed_and_named_and_the_rest_goes_on(written, work):
    file = written("code: [hungry.py]", "memory: 0.8")
    (work / "hungry.py").write_text(
        "import time\n\n\ndef of_run(run):\n"
        "    if run.planned.key == 'main/three/rloo/1':\n"
        "        held = b'x' * 10**9\n        time.sleep(60)\n        del held\n    return {'own': 1.0}\n"
    )
    status, said = call(file, "run", "report")
    assert status == 1
    assert "failed: main/three/rloo/1: killed: it used" in said
    assert "more than the cap of 0.8 GB" in said
    assert {row["status"] for row in rows(work)} == {"done", "failed"}
    assert [row.get("metrics", {}).get("own") for row in rows(work)].count(1.0) == 3
    assert "- `main/three/rloo/1`: killed" in (work / "small-results/table.md").read_text()
    # It is not tried again unless that is asked for; then its success stands.
    assert call(file, "run")[0] == 1
    assert len(rows(work)) == 4
    (work / "hungry.py").write_text("")
    status, said = call(file, "run", "--again")
    assert status == 0
    assert "main: 3 of 4 runs are there" in said
    assert len(rows(work)) == 5


def test_a_run_that_raises_is_named_with_what_it_said(written, work):
    file = written("code: [wrong.py]")
    (work / "wrong.py").write_text(
        "def of_run(run):\n    if run.planned.seed == 0:\n        raise KeyError('toxicity')\n    return {}\n"
    )
    status, said = call(file, "run", "--only", "rloo")
    assert status == 1
    assert "failed: main/three/rloo/0: KeyError: 'toxicity'" in said
    assert "wrong.py" in (work / "runs/small/main+three+rloo+0.log").read_text()
    assert [row["status"] for row in rows(work)].count("done") == 1


def test_a_class_of_ones_own_as_reward_is_learned_from_and_measured(written, work):
    (work / "mine.py").write_text(
        "import torch\nfrom rlalign import Component, Score, hookimpl\n\n\nclass Pays(Component):\n"
        "    @hookimpl\n    def reward(self, rollout):\n        return Score(torch.ones(len(rollout)))\n"
    )
    path = written()
    path.write_text(
        path.read_text()
        .replace("bandit-payout", '"mine:Pays"')
        .replace('reward: "mine:Pays"', "reward: Pays")
    )
    status, said = call("small.yaml", "run")
    assert status == 0, said
    found = rows(work)
    assert len(found) == 4
    assert all(one["status"] == "done" and one["metrics"]["final.reward"] == 1 for one in found)


def test_what_runs_begin_with_is_made_once_and_measured_where_it_was_best(written, work):
    file = written(
        "code: [ground.py]",
        "given: {size: 3}",
        "final.best: {}",
    )
    text = (
        file.read_text()
        .replace("final.best: {}", "")
        .replace("final: {final:", "final: {best: {at: reward, evaluate: {examples: 16}}, final:")
    )
    file.write_text(text)
    (work / "ground.py").write_text(
        "def prepare(ground):\n    (ground.work / f'ground-{ground.seed}').write_text('made')\n"
        "    return {'size': ground.given['size']}\n\n\n"
        "def derive(row, given):\n    return {'twice': 2 * given['size']}\n\n\n"
        "def answers(worlds):\n    return ['- all is well']\n"
    )
    status, said = call(file, "run", "report")
    assert status == 0, said
    assert said.count("prepare/three/") == 2  # one for each seed
    made = [row for row in rows(work) if row["stage"] == "prepare"]
    assert [row["metrics"]["size"] for row in made] == [3, 3]
    assert (work / "runs/small/ground-1").read_text() == "made"
    for row in rows(work):
        if row["stage"] == "main":
            curve = dict(zip(row["curve"]["step"], row["curve"]["reward"], strict=True))
            assert curve[row["metrics"]["best.step"]] == max(curve[1], curve[2])
            if row["metrics"]["best.step"] == 2:
                assert row["metrics"]["best.reward"] == row["metrics"]["final.reward"]
    assert "- all is well" in (work / "small-results/table.md").read_text()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("algorithm: rloo", "algorithm: rlo"), "the pipeline of main/three/rloo: `algorithm`|rlo"),
        (("bandit-payout, {kl", "bandit-pay, {kl"), "the pipeline of main/three/rloo"),
        (
            ("{kl: {coef: 0.5}}", "{kl: {coef: 0.5}}, {kl: {}, as: price}"),
            "the pipeline of main/three/rloo: `kl` and `price` each penalise the KL",
        ),
        (("seeds: 2", "seeds: two"), "small.yaml:13: seeds"),
    ],
)
def test_mistakes_show_before_the_first_run(written, work, change, expected):
    import re

    file = written()
    file.write_text(file.read_text().replace(*change))
    status, said = call(file, "run")
    assert status == 2
    assert said.startswith("error: ")
    assert re.search(expected, said), said
    assert not (work / "small-results").exists()


def test_one_process_at_a_time(written, work):
    from rlalign_study.runner import alone

    file = written()
    with alone(work / "runs/small"):
        status, said = call(file, "run")
    assert status == 2
    assert "another process is running this study here" in said


def test_two_machines_halves_make_a_whole(written, work):
    """Two folders of results, each with some runs, and what both have: the same numbers, to the digit."""
    file = written()
    assert call(file, "run", "--only", "rloo", "--results", "here")[0] == 0
    assert call(file, "run", "--only", "/1", "--results", "there")[0] == 0
    shutil.copy("there/small.jsonl", "here/from-there.jsonl")
    status, said = call(file, "plan", "--results", "here")
    assert status == 0
    assert "4 runs of 2 arms, 3 done" in said
    assert "1 run is left" in said
    status, said = call(file, "report", "--results", "here")
    assert "different numbers" not in said


def test_the_estimate_follows_what_is_known(written, work):
    file = written()
    assert "; how long they take is known once one is done" in call(file, "plan")[1]
    assert "main/three/rloo/0\n" in call(file, "plan", "--names")[1]
    assert time.process_time() > 0


def test_a_budget_ends_each_run_after_the_iteration_that_reaches_it(written, work):
    """An iteration is 8 tokens; the second world has a budget of its own, which the first iteration exceeds."""
    file = written("budget: {tokens: 12}")
    text = (
        file.read_text()
        .replace("iterations: 2", "iterations: 50")
        .replace("every: 1, examples", "every: 7, examples")
    )
    text = text.replace("worlds: {three: {}}", "worlds: {three: {}, brief: {budget: {seconds: 0.000001}}}")
    file.write_text(text.replace("arms: {rloo: {set: {algorithm: rloo}}, ", "arms: {"))
    status, said = call(file, "run")
    assert status == 0, said
    for row in rows(work):
        assert row["status"] == "done"
        steps = {"three": 2, "brief": 1}[row["world"]]
        assert row["metrics"]["steps"] == row["metrics"]["final.step"] == steps
        assert row["metrics"]["tokens"] == 8 * steps
        assert row["curve"]["step"] == [0]  # it ended between two evaluations, and is measured all the same


def test_a_budget_holds_over_all_phases(written, work):
    file = written("budget: {tokens: 20}")
    text = file.read_text().replace("arms: {rloo: {set: {algorithm: rloo}}, ", "arms: {")
    phases = "[{name: first, train: {iterations: 2}}, {name: second, train: {iterations: 2}}]"
    file.write_text(text.replace("algorithm: reinforce", f"algorithm: reinforce, phases: {phases}"))
    status, said = call(file, "run", "--only", "/0")
    assert status == 0, said
    (row,) = rows(work)
    assert (row["metrics"]["tokens"], row["metrics"]["steps"], row["metrics"]["final.step"]) == (24, 3, 3)


def test_rows_keep_each_value_to_the_bit_if_that_is_asked(written, work):
    file = written()
    text = file.read_text().replace("final: {final: {evaluate", "final: {final: {each: true, evaluate")
    file.write_text(text.replace("metrics: {", "metrics: {length: length, both: [bandit-payout, length], "))
    assert call(file, "run", "--only", "rloo/0")[0] == 0
    (row,) = rows(work)
    kept = row["measured"]["final"]
    assert kept["names"]["both"] == ["bandit-payout", "length"]
    assert (kept["examples"], kept["tokens"], len(kept["examples_hash"])) == (16, 16, 64)
    values = kept["per_example"]
    assert list(values) == ["length", "both", "reward"]  # greedy decoding has no KL
    assert values["both"] == [(1 + paid) / 2 for paid in values["reward"]]
    for name, value in kept["metrics"].items():
        assert value == math.fsum(values[name]) / 16
        assert row["metrics"][f"final.{name}"] == float(f"{value:.5g}")
    assert {"plugins", "data", "models", "device", "threads"} <= set(row["made"]["lock"])
    # A run that kept nothing is another run, and other metrics make another.
    file.write_text(file.read_text().replace("length: length, ", ""))
    assert "0 done" in call(file, "plan")[1]


def test_a_row_that_could_not_be_written_down_is_not_made_again(study, work):
    """Its runner was killed, say, or the disk with the results was full."""
    (one, *_) = plan.tuning(study, "three")
    folder = work / "runs"
    folder.mkdir()

    def full(row):
        raise ConfigError("no space")

    with pytest.raises(ConfigError):
        runner.run_all(study, [one], folder, 1, full)
    (left,) = folder.glob("*.json")
    said, seen = left.read_text(), []
    assert said == Row(**json.loads(said)).line
    left.write_text(said.replace('"stage"', '"stage" '))  # to tell it from a row that was made anew
    before = left.stat().st_mtime_ns
    runner.run_all(study, [one], folder, 1, lambda row: seen.append((row, left.stat().st_mtime_ns)))
    assert [(row.line, made) for row, made in seen] == [(said, before)]
    assert list(folder.glob("*.*")) == []
    # A row of another pipeline, of a run that failed, or that was cut off does not count.
    for other in (said.replace(one.hash, "0" * 16), said.replace('"done"', '"failed"'), said[:100]):
        left.write_text(other)
        made = []
        runner.run_all(study, [one], folder, 1, made.append)
        assert [row.status for row in made] == ["done"]


class Elsewhere(Cluster):
    """Loses the first run, and has room for one more at a time."""

    def launch(self, processes, first, again):
        raise NotImplementedError

    def start(self, make):
        raise NotImplementedError

    def each(self, work, some, memory):
        assert memory == 4
        yield some[0], ConnectionError("its machine is gone")
        for one in some[1:]:
            yield one, work(one)


def test_runs_of_a_cluster_are_those_of_this_machine_and_a_lost_one_has_failed(study, work):
    some = plan.tuning(study, "three")[:2]
    here, there = [], []
    for name, jobs, rows in (("here", 1, here), ("there", Elsewhere(None), there)):
        (work / name).mkdir()
        runner.run_all(study, some, work / name, jobs, rows.append, memory=4)
    lost, made = there
    assert (lost.key, lost.status, lost.why) == (some[0].key, "failed", "lost: its machine is gone")
    assert made.curve == here[1].curve != {} and made.status == "done"


def test_a_cluster_that_is_not_there_is_told(written):
    status, said = call(written(), "plan", "--jobs", "nowhere")
    assert status == 2 and "--jobs: no cluster named `nowhere` is installed" in said
    assert call(written(), "plan", "--jobs", "0")[0] == 2


def test_results_hold_whole_rows_or_none(study, work, row):
    some = [row(one) for one in plan.tuning(study, "three")[:3]]
    path, results = work / "results" / "small.jsonl", Results()
    results.add(some[0], path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"small.jsonl: .* cannot be written down: File too large"):
            results.add(some[1], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and len(results.rows) == 1
    results.add(some[2], path)
    path.write_bytes(path.read_bytes()[:-1])  # a crash of the machine cut off the end
    results.add(some[1], path)
    assert list(Results.read(path.parent).rows.values()) == [some[0], some[2], some[1]]
