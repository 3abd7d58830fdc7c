"""benchmarks/grue_small: what its README promises; every run goes through, on sample rows with tiny random models."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from rlalign_bench.ledger import Ledger
from rlalign_bench.suite import Suite
from rlalign_bench.table import table
from rlalign_study import core, plan, runner
from rlalign_study.plan import Planned
from rlalign_study.rows import Row

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks/grue_small"
SAMPLES = ROOT / "plugins/tasks/grue-tasks/src/rlalign_plugin_grue_tasks/samples"
README = (FOLDER / "README.md").read_text()
TASKS = {"online": ["imdb", "common-gen", "e2e"], "offline": ["daily-dialog"]}
VADER = importlib.util.find_spec("vaderSentiment") is not None


def suite(name: str, folder: Path = FOLDER) -> Suite:
    return Suite.read(folder / f"{name}.yaml")


def planned(suite: Suite, world: str) -> list[Planned]:
    first = {arm: plan.settings(suite, world, arm)[0] for arm in suite.arms_of(world)}
    return plan.main(suite, world, first)


def ledger_of(name: str) -> tuple[Suite, Ledger]:
    of = suite(name)
    return of, Ledger.read(of, FOLDER / of.results)


@pytest.mark.parametrize(("name", "runs"), [("online", 24), ("offline", 12)])
def test_the_stored_leaderboard_comes_again_from_stored_runs(name, runs):
    of, ledger = ledger_of(name)
    assert len(ledger.entries) == runs and not ledger.missing
    for file, text in table(ledger.entries, of.bench.scores, ledger.missing).items():
        assert (FOLDER / of.results / file).read_text() == text


def test_what_the_readme_says_of_logged_answers_is_what_is_stored():
    row = r"\| (`\S+`) +\| (0\.\d+) \| (\[.*?\]) \| +[\d.]+ \| +3 \| +(\S+ ± \S+) \|"
    found = re.findall(row, (FOLDER / "results/offline/leaderboard.md").read_text())
    assert len(found) == 4
    for name, mean, interval, kl in found:
        assert f"| {name} | {mean} {interval} | {kl} |" in README


def test_the_leaderboard_of_online_runs_stands_in_the_readme_and_the_manual():
    overall, _, _ = (FOLDER / "results/online/readme.md").read_text().partition("\nBy task")
    ranks, meaning = overall.removeprefix("Over all tasks:\n\n").split("\n\n", 1)
    for page in (README, (ROOT / "docs/leaderboards.md").read_text()):
        assert ranks in page and meaning in page


COLUMNS = {
    "imdb": ["reward", "vader", "surprise", "kl"],
    "common-gen": ["reward", "words", "meteor", "rouge", "surprise", "kl"],
    "e2e": ["reward", "facts", "meteor", "rouge", "surprise", "kl"],
}
"""Of the README's tables of online runs, between the algorithm and the seconds."""


@pytest.mark.parametrize("task", COLUMNS)
def test_what_the_readme_says_of_online_runs_is_what_is_stored(task):
    for algorithm in suite("online").arms:
        rows = stored("online", task, algorithm)
        cells = [f"`{algorithm}`"]
        for column in COLUMNS[task]:
            found = [row["measured"]["final"]["metrics"][column] for row in rows]
            digits = 3 if column != "kl" else 2 if task == "imdb" else 1
            cell = f"{fmean(found):.{digits}f}".replace("-", "−")
            each = column in ("reward", "vader")
            cells.append(f"{cell} ({', '.join(f'{one:.3f}' for one in found)})" if each else cell)
        cells.append(f"{fmean(row['metrics']['seconds'] for row in rows):,.0f}")
        assert f"| {' | '.join(cells)} |" in README


@pytest.mark.parametrize("name", TASKS)
def test_what_the_readme_says_of_each_runs_price_is_what_is_stored(name):
    for task in TASKS[name]:
        [line] = re.findall(rf"^\| `{task}` (\|.* s, .* GB .*)", README, re.M)
        for algorithm in suite(name).arms:
            used = [row["metrics"] for row in stored(name, task, algorithm)]
            cell = "; ".join(f"{one['seconds']:,.0f} s, {one['memory_gb']:.1f} GB" for one in used)
            assert f"| {cell} |" in line


def stored(name: str, task: str, algorithm: str) -> list[dict[str, Any]]:
    lines = (FOLDER / f"results/{name}/grue-small-{name}.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if (row["world"], row["arm"]) == (task, algorithm)]
    assert len(rows) == suite(name).seeds
    return sorted(rows, key=lambda row: row["seed"])


EACH = [(name, world) for name, worlds in TASKS.items() for world in worlds]


def module(name: str) -> Any:
    from rlalign_study.file import module_of

    return module_of(FOLDER / f"{name}.py")


# -- what the README promises ---------------------------------------------------------------------------


def test_there_are_as_many_runs_as_the_readme_says():
    runs = Counter(
        {name: sum(len(planned(suite(name), w)) for w in worlds) for name, worlds in TASKS.items()}
    )
    assert runs == {"online": 24, "offline": 12}
    assert "24 runs" in README and "12 runs" in README
    for name in TASKS:
        found = suite(name)
        assert list(found.worlds) == TASKS[name]
        for said in (*found.worlds, *found.arms):
            assert f"`{said}`" in README


@pytest.mark.parametrize("name, world", EACH)
def test_arms_of_a_world_differ_in_nothing_but_the_algorithm(name, world):
    made = planned(suite(name), world)
    for what in ("task", "policy", "evaluate"):
        assert len({str(one.pipeline[what]) for one in made}) == 1
    assert len({str(one.budget) for one in made}) == len({str(one.final) for one in made}) == 1
    if name == "online":
        for one in made:
            *rewards, price = one.pipeline["rewards"]
            assert rewards == made[0].pipeline["rewards"][:-1]
            assert price["kl"]["coef"] == (0.0 if one.arm == "supervised" else 0.03)


# -- what prepare.py makes ------------------------------------------------------------------------------


def gathered(target: Path, *parts: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(part.read_text() for part in parts))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample rows in the layout of the published slices."""
    folder = tmp_path_factory.mktemp("data")
    for name, here in (("imdb", "imdb"), ("commongen", "common-gen")):
        shutil.copytree(SAMPLES / here, folder / name)
    e2e, talk = SAMPLES / "e2e", SAMPLES / "daily-dialog-plusplus"
    gathered(folder / "e2e/devset.csv", e2e / "trainset.csv", e2e / "devset.csv")
    lines = (folder / "e2e/devset.csv").read_text().splitlines(keepends=True)
    (folder / "e2e/devset.csv").write_text("".join(dict.fromkeys(lines)))  # one head
    gathered(folder / "dailydialog-plusplus/dev.json", talk / "train.json", talk / "dev.json")
    shutil.copy(talk / "test.json", folder / "dailydialog-plusplus")
    (folder / "rt-polarity").mkdir()
    for label, word in (("neg", b"bad"), ("pos", b"good")):
        rows = b"".join(b"the film was %s , man number %d\x85\n" % (word, i) for i in range(20))
        (folder / f"rt-polarity/rt-polarity.{label}").write_bytes(rows)
    return folder


@pytest.fixture(scope="module")
def ground(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suites' folder with all that prepare.py makes, from tiny random models."""
    from rlalign_plugin_model_rewards.testing import tiny_scorer

    root = tmp_path_factory.mktemp("root")
    there = root / "benchmarks/grue_small"
    there.mkdir(parents=True)
    for name in ("online.yaml", "offline.yaml", "samples.py"):
        shutil.copy(FOLDER / name, there)
    shutil.copytree(ROOT / "examples/sentiment-reward", root / "examples/sentiment-reward")
    chat = tiny_scorer(root / "chat", "llama", max_position_embeddings=4096)
    encoder = tiny_scorer(root / "encoder", "bert", max_position_embeddings=512)
    module("prepare").main(chat, encoder, data, there / "prepared")
    return there


@pytest.mark.slow
def test_what_is_prepared_is_parted_and_left_alone_the_second_time(data, ground):
    there = ground / "prepared"
    made = {file: file.stat().st_mtime_ns for file in there.rglob("*") if file.is_file()}
    rows = {
        part: [
            json.loads(row) for row in (there / f"dailydialog-plusplus/{part}.json").read_text().splitlines()
        ]
        for part in ("train", "dev")
    }
    assert [len(some) for some in rows.values()] == [4, 1]
    assert not {str(row["context"]) for row in rows["train"]} & {str(row["context"]) for row in rows["dev"]}
    for row in (*rows["train"], *rows["dev"]):
        assert len(row["positive_responses"]) == len(row["adversarial_negative_responses"]) == 2
    facts = []
    for part in ("trainset", "devset"):
        with (there / f"e2e/{part}.csv").open() as file:
            facts.append({row["mr"] for row in csv.DictReader(file)})
    assert facts[0] and facts[1] and not facts[0] & facts[1]
    module("prepare").main(Path("nowhere"), Path("nowhere"), data, there)
    assert made == {file: file.stat().st_mtime_ns for file in there.rglob("*") if file.is_file()}


def test_a_missing_folder_of_data_is_named(tmp_path):
    (tmp_path / "imdb").mkdir()
    with pytest.raises(SystemExit, match="no folder commongen, e2e, dailydialog-plusplus, rt-polarity"):
        module("prepare").main(tmp_path, tmp_path, tmp_path, tmp_path / "made")
    assert not (tmp_path / "made").exists()


# -- runs -----------------------------------------------------------------------------------------------


def small(one: Planned) -> Planned:
    """With few tokens and examples, and without VADER where it is not installed."""
    one.pipeline["evaluate"] |= {"examples": 4}
    one.final["final"]["examples"] = 4
    if not VADER:
        one.pipeline["evaluate"]["use"] = [
            u for u in one.pipeline["evaluate"]["use"] if "vader" not in str(u)
        ]
    tokens = {"daily-dialog": 4500.0 if one.arm == "a-lol" else 1000.0}  # a value is learned first
    return replace(one, budget={"tokens": tokens.get(one.world, 200.0)})


@pytest.mark.slow
@pytest.mark.parametrize("name, world", EACH)
def test_every_algorithm_runs_from_plan_to_row(name, world, ground, tmp_path):
    about = suite(name, ground)
    todo = [small(one) for one in planned(about, world) if one.seed == 0]
    for one in todo:
        core.check(one.pipeline, about.folder, about.hooks.components)
    made: list[Row] = []
    runner.run_all(about, todo, tmp_path, 2, made.append)
    assert {row.arm for row in made} == set(about.arms)
    for row in made:
        assert row.status == "done", (row.arm, row.why)
        assert row.metrics["steps"] > 0
        assert row.metrics["tokens"] >= 200
        assert row.curve["kl"][0] == pytest.approx(0, abs=1e-4)
        assert {f"final.{key}" for key in about.metrics_of(world)} - {"final.vader"} <= row.metrics.keys()
        page = (tmp_path / f"samples/{world}-{row.arm}-0.md").read_text()
        assert page.count("**before**") == page.count("**after**") >= 1
        assert answers(page, "before") != answers(page, "after")


def answers(page: str, when: str) -> list[str]:
    return [line.partition(": ")[2] for line in page.split("\n") if line.startswith(f"- **{when}**")]


def test_a_page_of_samples_shows_a_prompt_with_what_was_said_before_and_after():
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    before = [
        {"prompt": prompt, "response": "old\nline", "scores": {"kind": 0.25}} for prompt in ("A film", chat)
    ]
    after = [
        {"prompt": prompt, "responses": ["new line"], "meta": {"rlalign": {"rewards": {"kind": [0.75]}}}}
        for prompt in ("A film", chat)
    ]
    page = module("samples").page_of("a run", before, after)
    assert answers(page, "before") == ["old line (kind 0.25)"] * 2
    assert answers(page, "after") == ["new line (kind 0.75)"] * 2
    assert page.index("A film") < page.index("old line") < page.index("new line") < page.index("user: Hello")
