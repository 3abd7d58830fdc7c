"""recipes/grue: the files are what the table gives, every one can run, and runs on the sample rows with tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes.grue import generate, try_out
from recipes.grue.recipe import name_of

import rlalign
from rlalign.config.load import load_pipeline
from rlalign_plugin_text_metrics import wordnet

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "grue"
RECIPES = generate.recipes()
FILES = [FOLDER / recipe.task / f"{recipe.method}.yaml" for recipe in RECIPES]
WRITE = "python -m recipes.grue.generate"
SOME = ("imdb/supervised-nlpo", "e2e/rloo", "daily-dialog/a-lol")


def called(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module", autouse=True)
def some_wordnet(tmp_path_factory) -> Iterator[None]:
    """A WordNet without words, for METEOR, which is not computed without one."""
    folder = tmp_path_factory.mktemp("dict")
    for file in wordnet.FILES:
        (folder / file).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WNSEARCHDIR", str(folder))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Mapping[str, Path]:
    return try_out.tiny_models(tmp_path_factory.mktemp("models"))


def written(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


# -- the files ------------------------------------------------------------------------------------------------


def test_the_files_are_what_the_table_gives():
    assert sorted(FOLDER.glob("*/*.yaml")) == sorted(FILES), WRITE
    for path, text in generate.files().items():
        assert path.read_text() == text, WRITE
    for recipe in RECIPES:
        assert yaml.safe_load(recipe.text) == recipe.sections


@pytest.mark.parametrize("path", FILES, ids=called)
def test_every_recipe_passes_check(path):
    """As far as that goes where neither its data nor its models are."""
    assert rlalign.load(path).check().startswith(f"{path.stem}: ")


TASKS = sorted({recipe.task for recipe in RECIPES})


def components(items: Any) -> set[str]:
    """Without their options."""
    return {item if isinstance(item, str) else next(iter(item)) for item in items}


@pytest.mark.parametrize("task", TASKS)
def test_recipes_say_what_the_task_says(task):
    """How it is sampled and decoded, what it is measured by, which model was fine-tuned on it."""
    recipe = next(one for one in RECIPES if (one.task, one.method) == (task, "supervised-ppo"))
    published = load_pipeline(FOLDER / task / "supervised.yaml").phases[0].task.peek()
    assert recipe.sections["generation"] == plain(published.defaults["generation"])
    assert recipe.sections["evaluate"]["generation"] == plain(published.generation)
    evaluated = components([*recipe.sections["rewards"], *recipe.sections["evaluate"]["use"]])
    assert components(published.metrics) <= evaluated
    if recipe.row["from"] == "original":
        assert recipe.model == published.warm_start


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(each) if isinstance(each, tuple) else each for key, each in settings.items()}


# -- what one file has that another has not -------------------------------------------------------------------


def parts(task: str, method: str) -> dict[str, Any]:
    """A recipe's sections, those of its last phase among them; without a first phase that imitates."""
    (recipe,) = [one for one in RECIPES if (one.task, one.method) == (task, method)]
    found = dict(recipe.sections)
    last = found.pop("phases", [{}])[-1]
    return {**found, **{key: value for key, value in last.items() if key != "name"}}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "one, other, may",
    [
        ("ppo", "nlpo", {"algorithm"}),
        ("supervised-ppo", "supervised-nlpo", {"algorithm"}),
        ("ppo", "supervised-ppo", {"policy", "rewards", "train", "evaluate"}),
        ("supervised-ppo", "rloo", {"algorithm", "models", "generation", "train"}),
        ("rloo", "grpo", {"algorithm", "rewards", "evaluate"}),
        ("a-lol", "copg", {"algorithm", "models"}),
    ],
)
def test_files_differ_by_what_they_mean(task, one, other, may):
    first, second = parts(task, one), parts(task, other)
    differs = {key for key in {*first, *second} if first.get(key) != second.get(key)}
    assert "algorithm" in differs or one == "ppo"
    assert differs <= may


@pytest.mark.parametrize("task", TASKS)
def test_all_that_sample_draw_as_many_responses(task):
    """Of those that begin with the fine-tuned model."""

    def drawn(method: str) -> int:
        recipe = next(one for one in RECIPES if (one.task, one.method) == (task, method))
        (train, samples) = [recipe.sections.get("train"), recipe.sections["generation"].get("samples", 1)]
        phases = {phase["name"]: phase for phase in recipe.sections.get("phases", ())}
        train = train or phases.get("log", phases.get("align"))["train"]
        return train["iterations"] * train["prompts"] * samples

    methods = ("supervised-ppo", "supervised-nlpo", "rloo", "grpo", "a-lol", "copg")
    assert len({drawn(method) for method in methods}) == 1


EVERY = {"imdb": 10, "common-gen": 5, "cnn-daily-mail": 10, "totto": 20, "iwslt17": 10, "narrative-qa": 10}


@pytest.mark.parametrize("task", [*EVERY, "daily-dialog"])
def test_rl4lms_is_evaluated_as_often_as_most_of_its_configurations(task):
    for method in ("ppo", "nlpo", "supervised-ppo", "supervised-nlpo"):
        assert parts(task, method)["evaluate"]["every"] == EVERY.get(task, 5)


@pytest.mark.parametrize("task", TASKS)
def test_a_value_of_0_to_1_is_of_rewards_within(task):
    """A penalty is not: no log that A-LoL learns from has one."""
    recipe = next(one for one in RECIPES if (one.task, one.method) == (task, "a-lol"))
    (log,) = [phase for phase in recipe.sections["phases"] if phase["name"] == "log"]
    assert not components(log["rewards"]) & {"commongen-penalty", "kl"}


# -- a run of each --------------------------------------------------------------------------------------------


def run(path: Path, models: Mapping[str, Path], folder: Path) -> rlalign.Result:
    recipe = try_out.shortened(written(path), models)
    return rlalign.run(recipe, root=folder, name=path.stem, display=False)


def holds(result: rlalign.Result, path: Path) -> None:
    """It came to its end, learned something in each phase, and measured what the recipe says."""
    assert result.finished
    recipe = written(path)
    phases = recipe.get("phases", [recipe])
    assert len(result.metrics) == sum(1 if p["train"].get("iterations") == 1 else 2 for p in phases)
    for item in recipe["evaluate"]["use"]:
        name = name_of(item)
        assert any(key == f"eval/{name}" or key.startswith(f"eval/{name}/") for key in result.last), name


@pytest.mark.parametrize("name", SOME)
def test_some_run_on_sample_rows(name, models, tmp_path):
    path = FOLDER / f"{name}.yaml"
    pipeline = rlalign.load(try_out.shortened(written(path), models))
    assert pipeline.check().startswith("pipeline: ")
    holds(run(path, models, tmp_path), path)


def test_a_copy_takes_the_place_of_sample_rows(models, tmp_path):
    rows = [
        {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(20)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = try_out.shortened(written(FOLDER / "gsm8k" / "grpo.yaml"), models, tmp_path)
    recipe["task"]["gsm8k"]["held_out"] = 0.5
    assert "sample" not in recipe["task"]["gsm8k"]
    assert "path" in recipe["task"]["gsm8k"] and rlalign.load(recipe).check().startswith("pipeline: ")


def test_an_unknown_recipe_and_a_refused_one_are_said_in_a_line(monkeypatch, tmp_path):
    def told(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["try_out", *words, "--runs", str(tmp_path / "runs")])
        with pytest.raises(SystemExit) as stopped:
            try_out.main()
        return str(stopped.value)

    assert told("imdb/none").startswith("error: imdb/none: no such recipe; there are cnn-daily-mail/a-lol, ")
    assert told("gsm8k/grpo", "--data", str(tmp_path / "nowhere")).startswith("error: gsm8k/grpo: ")


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=called)
def test_every_recipe_runs_on_sample_rows(path, models, tmp_path):
    holds(run(path, models, tmp_path), path)


@pytest.mark.slow
def test_the_suite_is_run_and_ranked(models, tmp_path):
    """Two tasks, one of which has no published model, by an online and an offline algorithm."""
    tasks, algorithms = ("imdb", "e2e"), ("rloo", "a-lol")
    suite = yaml.safe_load((FOLDER / "suite.yaml").read_text())
    worlds = {}
    for task in tasks:
        said = suite["worlds"][task]
        arms = {name: try_out.small(said["arms"][name], models) for name in algorithms}
        worlds[task] = {"set": try_out.shortened(said["set"], models), "arms": arms}
    suite |= {"worlds": worlds, "arms": {name: {} for name in algorithms}, "seeds": 1}
    suite["final"] = {"final": {"evaluate": {"examples": 4}}}
    suite["bench"]["scores"] = {task: suite["bench"]["scores"][task] for task in tasks}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    bench = [sys.executable, "-m", "rlalign.cli", "bench", "suite.yaml"]
    for command in ("run", "table"):
        subprocess.run([*bench, command], cwd=tmp_path, check=True)
    (rows,) = (tmp_path / "results").rglob("*.jsonl")
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(found) == 4
    assert "rloo" in (tmp_path / "results/leaderboard.md").read_text()
