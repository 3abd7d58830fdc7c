"""Measuring, sampling and exporting a run: the numbers are the run's own, and the run stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from rlalign.cli.commands import program
from rlalign.config.load import load_pipeline
from rlalign.records import checkpoint, logs
from rlalign.records.checkpoint import load_tensors
from rlalign.running import loop
from rlalign.testing import registry
from rlalign.testing.bench import Silence, stop_early

PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": [
        {"rlalign.testing:TokenSum": None, "as": "sum"},
        {"kl": {"coef": 0.5, "target": 0.001}},
    ],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 4, "lr": 0.1},
    "evaluate": {"every": 2, "examples": 4, "generation": {"samples": 2}},
}
PHASES: dict[str, Any] = {
    **{key: value for key, value in PIPELINE.items() if key not in ("task", "rewards")},
    "phases": [
        {
            "name": "warm",
            "task": {"rlalign.testing:Numbers": {"size": 3}},
            "rewards": PIPELINE["rewards"][:1],
        },
        {"name": "align", "task": PIPELINE["task"], "rewards": PIPELINE["rewards"]},
    ],
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, list(arguments), prog_name="rlalign")


def describe_error(*arguments: str) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def ran(pipeline: dict[str, Any] = PIPELINE, name: str = "toy", stop: bool = False) -> Path:
    """A run; `stop` ends it after its first iteration."""
    Path(f"{name}.yaml").write_text(yaml.dump(pipeline, sort_keys=False))
    known = registry()
    started = loop.start(load_pipeline(f"{name}.yaml", registry=known), known, display=Silence())
    if stop:
        stop_early(started)
    else:
        started.run()
    return Path("runs") / name


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def last_evaluation(run: Path) -> dict[str, Any]:
    rows = [row for row in logs.read(run / "metrics.jsonl") if "eval/total" in row]
    return {name: value for name, value in rows[-1].items() if name != "time/evaluate"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `PIPELINE`, for copies."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran()
    return folder


@pytest.fixture
def toy(made: Path, _inside: None) -> Path:
    """A copy of it."""
    shutil.copytree(made, ".", dirs_exist_ok=True)
    return Path("runs/toy")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- eval -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [PIPELINE, PHASES, {**PIPELINE, "deterministic": True}])
def test_eval_gives_the_run_s_last_numbers_to_the_bit_and_leaves_it_alone(pipeline: dict[str, Any]) -> None:
    run = ran(pipeline)
    before = contents(run)
    assert describe_error("eval", str(run)) == last_evaluation(run)
    assert contents(run) == before
    assert describe_error("eval", "toy", "evaluate.examples=4") == last_evaluation(run)  # by its name alone
    assert describe_error("eval", "toy", "--examples", "4", "--split", "other") == last_evaluation(run)


def test_what_a_component_learned_is_there_although_an_override_moves_it() -> None:
    """`kl` steers its coefficient; another task and another reward before it change the order of building."""
    run = ran(PHASES)
    coef = last_evaluation(run)["eval/kl/coef"]
    assert coef != 0.5
    task = '{"rlalign.testing:Numbers": {"size": 2}}'
    found = describe_error(
        "eval", "toy", "--task", task, "--reward", "rlalign.testing:Length", "--reward", "kl"
    )
    assert found["eval/responses"] == 4 and "eval/Length" in found and "eval/sum" not in found
    assert found["eval/kl/coef"] == coef


def test_eval_of_an_unfinished_run_is_of_its_last_commit_point() -> None:
    run = ran(PHASES, stop=True)
    found = describe_error("eval", str(run))
    assert (found["phase"], found["iteration"]) == ("warm", 1)
    assert not (run / "model").exists()


def test_eval_prints_a_table_and_takes_another_seed_and_decoding(toy: Path) -> None:
    run = toy
    lines = call("eval", "toy").stdout.splitlines()
    assert lines[0] == "PolicyGradient, iteration 3"
    shown = dict(line.split() for line in lines[1:])
    logged = last_evaluation(run)
    assert list(shown) == [name for name in logged if name.startswith("eval/")]
    assert float(shown["eval/total"]) == pytest.approx(logged["eval/total"], rel=1e-5)
    assert describe_error("eval", "toy", "--seed", "1")["eval/total"] != logged["eval/total"]
    greedy = describe_error("eval", "toy", 'evaluate.generation={"greedy": true}')
    assert greedy["eval/responses"] == 4


def test_eval_of_a_model_folder(toy: Path) -> None:
    run = toy
    policy, kind = ["--policy", "rlalign.testing:Logits"], ["--task", "rlalign.testing:Numbers"]
    options = ["--reward", "{rlalign.testing:TokenSum: null, as: sum}", "--examples", "4"]
    decoding = ["evaluate.generation.samples=2", "evaluate.generation.max_new_tokens=7"]
    found = describe_error("eval", str(run / "model"), *policy, *kind, *options, *decoding)
    logged = last_evaluation(run)
    assert found["model"] == str(run / "model")
    assert found["eval/sum"] == logged["eval/sum"] and found["eval/tokens"] == logged["eval/tokens"]
    assert call("eval", str(run / "model"), *policy, *kind).stdout.startswith(f"{run / 'model'}\n")


# -- sample -----------------------------------------------------------------------------------------


def test_sample_shows_what_the_last_evaluation_logged(toy: Path) -> None:
    run = toy
    rows = list(logs.read(run / "samples.jsonl"))[-8:]
    assert describe_error("sample", "toy") == rows
    assert describe_error("sample", "toy", "--n", "2") == rows[:2]
    text = call("sample", "toy", "--n", "1").stdout
    assert f"response  {rows[0]['response']}\n" in text and "scores    sum " in text


def test_new_samples_are_the_final_model_s(toy: Path) -> None:
    run = toy
    before = contents(run)
    logged = describe_error("sample", "toy")
    assert describe_error("sample", "toy", "--new", "--n", "4") == logged
    assert describe_error("sample", "toy", "--new", "--n", "4", "--seed", "5") != logged
    own = describe_error(
        "sample", "toy", "--new", "--prompt", "3", "--prompt", "1", "evaluate.generation.samples=1"
    )
    assert [row["prompt"] for row in own] == ["3", "1"] and all("scores" not in row for row in own)
    assert contents(run) == before


# -- export -----------------------------------------------------------------------------------------


def test_export_of_a_run_finished_or_not(toy: Path) -> None:
    whole, broken = toy, ran(name="broken", stop=True)
    assert call("export", "toy").stdout == "model: toy-model\n"
    saved = load_tensors("toy-model/model.safetensors")
    for name, tensor in load_tensors(whole / "model/model.safetensors").items():
        assert torch.equal(saved[name], tensor)
    before = contents(broken)
    assert call("export", "broken", "--to", "a/b").exit_code == 0
    assert contents(broken) == before
    point = checkpoint.read(broken / "checkpoints", 1).models["policy"][1]
    saved = load_tensors("a/b/model.safetensors")
    assert all(torch.equal(saved[name], point[name]) for name in saved)
    card = Path("a/b/README.md").read_text()
    assert (
        "Exported from the run broken after iteration 1 of PolicyGradient." in card and "beside" not in card
    )


def test_export_of_a_run_without_evaluation() -> None:
    ran({key: value for key, value in PIPELINE.items() if key != "evaluate"})
    assert call("export", "toy").exit_code == 0
    refused = call("eval", "toy")
    assert refused.exit_code == 2 and "has no `evaluate` section; name a split to use" in refused.stderr
    assert call("sample", "toy").exit_code == 2
    assert call("sample", "toy", "--new", "--prompt", "1").exit_code == 0
    assert call("export", "toy", "--new", "--samples", "s.jsonl").exit_code == 2
    assert call("export", "toy", "--new", "--samples", "s.jsonl", "--split", "val").exit_code == 0


def test_exported_samples_carry_scores_log_probs_and_where_they_come_from(toy: Path) -> None:
    run = toy
    said = call("export", "toy", "--new", "--samples", "s.jsonl", "evaluate.generation.top_k=3")
    assert said.exit_code == 0 and said.stdout == "samples: s.jsonl, 8 responses\n"
    assert not Path("toy-model").exists()
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    figures = describe_error("eval", "toy", "evaluate.generation.top_k=3")
    scores = [score for row in rows for score in row["scores"]]
    assert sum(scores) / 8 == pytest.approx(figures["eval/sum"], rel=1e-6)
    assert not {"eval/total", "eval/kl", "eval/kl/k1"} & set(figures)  # a truncated sample estimates no KL
    about = rows[0]["meta"]["rlalign"]
    assert (about["run"], about["phase"], about["iteration"]) == ("toy", "PolicyGradient", 3)
    assert about["generation"]["top_k"] == 3 and set(about["rewards"]) == {"sum"}
    assert all(a > b for a, b in zip(about["logprobs"], about["full_logprobs"], strict=True))  # truncated
    assert len(about["lock"]) == 64 and (run / "lock.json").exists()


# -- another checkpoint than the last -------------------------------------------------------------------


def test_an_older_checkpoint_and_the_best(tmp_path: Path) -> None:
    run = ran({**PIPELINE, "checkpoints": {"last": 1, "best": "eval/total"}})
    rows = [row for row in logs.read(run / "metrics.jsonl") if "eval/total" in row]
    best = max((row for row in rows if row["iteration"]), key=lambda row: row["eval/total"])
    at = str(best["iteration"])
    assert at == "2" and rows[-1]["iteration"] == 3
    logged = {name: value for name, value in best.items() if name != "time/evaluate"}
    for target in (["toy", "--at", "best"], ["toy", "--at", at], [f"runs/toy/checkpoints/{int(at):08d}"]):
        assert describe_error("eval", *target) == logged
        shown = describe_error("sample", *target)
        assert {row["iteration"] for row in shown} == {2}
        assert describe_error("sample", *target, "--new")[0]["iteration"] == 2
    (first,) = describe_error("sample", "toy", "--at", "0", "--n", "1")
    assert first["iteration"] == 0
    result = call("export", "toy", "--at", "best", "--to", "older")
    assert result.exit_code == 0 and "after iteration 2" in Path("older/README.md").read_text()
    result = call("export", "runs/toy/checkpoints/00000002")
    assert result.exit_code == 0 and Path("toy-model/README.md").is_file(), result.output
    assert call("export", "toy", "--at", "2", "--new", "--samples", "s.jsonl").exit_code == 0
    assert json.loads(Path("s.jsonl").read_text().splitlines()[0])["meta"]["rlalign"]["iteration"] == 2


@pytest.mark.parametrize("first", [True, False], ids=["both phases", "the second"])
def test_iterations_are_those_of_the_whole_run(tmp_path: Path, first: bool) -> None:
    """Where no evaluation is at a phase's end, the next one's first is of the same weights."""
    warm, align = PHASES["phases"]
    ran({**PHASES, "phases": [warm if first else {**warm, "evaluate": None}, align]})

    def shown(at: int) -> tuple[str, int]:
        row = describe_error("sample", "toy", "--at", str(at), "--n", "1")[0]
        return row["phase"], row["iteration"]

    assert [shown(at) for at in (3, 5, 6)] == [
        ("warm", 3) if first else ("align", 0),
        ("align", 2),
        ("align", 3),
    ]
    if first:
        assert [shown(at) for at in (0, 2)] == [("warm", 0), ("warm", 2)]
    else:
        assert "was not evaluated at iteration 0, but at 3, 5, 6" in call("sample", "toy", "--at", "0").output


# -- what makes no sense ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["eval", "nothing"], "nothing: there is no such run"),
        (["sample", "nothing"], "nothing: there is no such run"),
        (["export", "runs/nothing"], "runs/nothing: there is no such run. Runs in runs: toy."),
        (["eval", "runs/toy/model"], "name a --task"),
        (["eval", "runs"], "is neither a run (pipeline.yaml) nor a model (config.json)"),
        (["eval", "toy", "--task", "nosuch"], "no component named `nosuch` is installed"),
        (["eval", "toy", "--reward", "nosuch"], "no component named `nosuch` is installed"),
        (["eval", "toy", "--policy", "table"], "a policy goes with a model"),
        (["eval", "toy", "train.lr=1"], "train.lr=1: only `evaluate.…=…` can be said here"),
        (["eval", "toy", "evaluate.generation.temprature=1"], "temperature"),
        (["sample", "toy", "--seed", "1"], "add --new"),
        (["eval", "toy", "runs/toy/model"], "one run or model at a time; got toy, runs/toy/model"),
        (["sample", "toy", "other"], "one run or model at a time; got toy, other"),
        (["export", "toy", "other", "a=1"], "one run or model at a time; got toy, other"),
        (["sample", "toy", "--system", "x"], "--system goes with --prompt"),
        (["sample", "toy", "--prompt", "1", "--system", "x"], "the model has no chat template"),
        (["sample", "runs/toy/model"], "has logged nothing: give it a --prompt, or a --task"),
        (["sample", "toy", "--n", "0"], "--n"),
        (
            ["eval", "toy", "--at", "7"],
            "no checkpoint of iteration 7; there are those of the iterations",
        ),
        (["eval", "toy", "--at", "best"], "`checkpoints: {best: eval/NAME}`"),
        (["eval", "toy", "--at", "last"], "'last' is no iteration: expected a number, or best"),
        (["eval", "runs/toy/checkpoints/00000003", "--at", "2"], "is a checkpoint already"),
        (["eval", "runs/toy/model", "--task", "nosuch", "--at", "2"], "a model has no iterations"),
        (["sample", "toy", "--at", "1"], "was not evaluated at iteration 1, but at 0, 2, 3"),
        (["export", "toy", "--at", "2", "--samples", "x.jsonl"], "--at goes with a model, or with --new"),
        (["export", "toy", "--to", "toy.yaml"], "toy.yaml: exists; move it away, or choose another place"),
        (["export", "toy", "--to", "runs/toy/model2"], "lies in the run's own folder"),
        (["export", "toy", "--new", "--samples", "toy.yaml/x"], "cannot be written: "),
    ],
)
def test_requests_that_make_no_sense(arguments: list[str], said: str, toy: Path) -> None:
    before = contents(toy)
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "Traceback" not in result.stderr
    assert contents(toy) == before


def test_nothing_is_saved_yet(toy: Path) -> None:
    run = toy
    (run / "checkpoints").rename("aside")
    assert f"its model is in {run}/model" in call("eval", "toy").stderr
    (run / "model").rename("aside-model")
    result = call("export", "toy")
    assert result.exit_code == 2 and "nothing is saved yet: wait" in result.stderr


def test_a_reward_that_is_not_finite_is_not_exported() -> None:
    Path("lost.py").write_text(
        "import torch\nfrom rlalign import Component, Score, hookimpl\n\n\nclass Lost(Component):\n"
        "    @hookimpl\n    def reward(self, run, rollout):\n"
        "        lost = run.folder.name != 'toy'  # once the run is over\n"
        "        return Score(torch.full((len(rollout),), torch.nan if lost else 1.0))\n"
    )
    ran({**PIPELINE, "evaluate": {**PIPELINE["evaluate"], "use": ["lost:Lost"]}})
    result = call("export", "toy", "--new", "--samples", "s.jsonl", "--trust")
    assert result.exit_code == 1 and "a score is not finite" in result.stderr
    assert not Path("s.jsonl").exists()
