"""Responses that a run keeps while it trains, and `rlalign export --samples` of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from rlalign import Example, RLAlignError, Rollout, Task
from rlalign.cli.commands import program
from rlalign.config.load import load_pipeline
from rlalign.errors import ComponentError
from rlalign.records import logs
from rlalign.running import loop
from rlalign.testing import Bench, registry
from rlalign.testing.bench import Silence, stop_early
from rlalign.testing.logits import Logits

PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": [
        {"rlalign.testing:TokenSum": None, "as": "sum", "weight": 0.5},
        {"kl": {"coef": 0.1}},
    ],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 3, "max_new_tokens": 5, "temperature": 0.8, "top_k": 4},
    "train": {"iterations": 3, "prompts": 4, "lr": 0.1, "keep_responses": True},
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, list(arguments), prog_name="rlalign")


def ran(
    pipeline: dict[str, Any] = PIPELINE, name: str = "toy", stop: bool = False, **extra: type[Any]
) -> Path:
    """A run; `stop` ends it after its first iteration."""
    Path(f"{name}.yaml").write_text(yaml.dump(pipeline, sort_keys=False))
    known = registry(extra)
    started = loop.start(load_pipeline(f"{name}.yaml", registry=known), known, display=Silence())
    if stop:
        stop_early(started)
    else:
        started.run()
    return Path("runs") / name


def exported(name: str = "toy", file: str = "s.jsonl") -> list[dict[str, Any]]:
    result = call("export", name, "--samples", file)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert result.stdout.startswith(f"samples: {file}, {sum(len(r['responses']) for r in rows)} responses")
    return rows


def test_every_response_of_every_iteration_with_what_it_earned() -> None:
    run = ran()
    rows = exported()
    assert len(rows) == 12 and len({row["id"] for row in rows}) == 12
    lines = [line for line in logs.read(run / "metrics.jsonl") if "responses" in line]
    for line in lines:
        mine = [row for row in rows if row["meta"]["rlalign"]["iteration"] == line["iteration"]]
        assert len(mine) == 4
        scores = [score for row in mine for score in row["scores"]]
        assert sum(scores) / 12 == pytest.approx(line["reward/total"], rel=1e-6)
        for reward in ("sum", "kl"):
            parts = [x for row in mine for x in row["meta"]["rlalign"]["rewards"][reward]]
            assert sum(parts) / 12 == pytest.approx(line[f"reward/{reward}"], rel=1e-6, abs=1e-9)
        finished = [f for row in mine for f in row["finished"]]
        assert sum(finished) / 12 == pytest.approx(line["finished"])
    for row in rows:
        about = row["meta"]["rlalign"]
        sums = [sum(map(float, text.split())) / 10 for text in row["responses"]]
        assert about["rewards"]["sum"] == pytest.approx(sums)
        assert (
            row["id"]
            == f"PolicyGradient-1/{about['example']}#{about['iteration']}.{row['id'].rpartition('.')[2]}"
        )
        assert about["generation"]["top_k"] == 4 and about["same_tokens"] == [True] * 3
        assert all(a > b for a, b in zip(about["logprobs"], about["full_logprobs"], strict=True))  # truncated
        assert (about["run"], about["seed"], about["repeat"], about["step"]) == (
            "toy",
            0,
            0,
            about["iteration"] - 1,
        )
        assert len(about["lock"]) == len(about["model"]) == 64


def test_log_probs_are_those_of_the_policy_that_sampled() -> None:
    frozen = {**PIPELINE, "generation": {"samples": 3, "max_new_tokens": 5}}
    frozen["train"] = {**PIPELINE["train"], "lr": 0.0}
    ran(frozen)
    bench = Bench(Path("again"), frozen)
    for row in exported():
        example = Example(row["id"], row["prompt"], tuple(row["responses"]), finished=tuple(row["finished"]))
        # Which logits a response reads is its place among its prompt's.
        rollout = bench.run.models.policy.encode([example])
        found = bench.run.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT
        expected = found.double().where(rollout.mask_NT, 0.0).sum(1).tolist()
        assert row["meta"]["rlalign"]["full_logprobs"] == pytest.approx(expected, rel=1e-6)


def test_a_run_that_kept_none_says_what_to_do() -> None:
    ran({**PIPELINE, "train": {**PIPELINE["train"], "keep_responses": False}})
    result = call("export", "toy", "--samples", "s.jsonl")
    assert result.exit_code == 2
    assert "has kept no responses; say `train: {keep_responses: true}`" in result.stderr
    assert "add --new to sample now" in result.stderr
    assert not Path("s.jsonl").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--new"], "--new goes with --samples FILE"),
        (["--samples", "s.jsonl", "--seed", "1"], "add --new and --samples FILE to sample now"),
        (["--samples", "s.jsonl", "evaluate.examples=2"], "add --new and --samples FILE to sample now"),
        (["--split", "val"], "add --new and --samples FILE to sample now"),
        (["--samples", "runs/toy/s.jsonl"], "lies in the run's own folder"),
    ],
)
def test_requests_that_make_no_sense(arguments: list[str], said: str) -> None:
    ran()
    result = call("export", "toy", *arguments)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert not Path("s.jsonl").exists() and not Path("toy-model").exists()


def test_a_run_that_goes_on_is_exported_up_to_its_last_commit_point() -> None:
    run = ran(stop=True)
    rows = exported()
    assert [row["meta"]["rlalign"]["iteration"] for row in rows] == [1] * 4
    with (run / "rows/PolicyGradient-1.jsonl").open("a") as file:
        file.write(json.dumps(rows[0]) + '\n{"id": "torn')  # the next iteration, not committed yet
    assert exported(file="again.jsonl") == rows
    resumed = loop.resume(run, registry(), display=Silence())
    resumed.run()
    whole = ran(name="whole")
    after = exported(file="after.jsonl")
    assert after[:4] == rows and len(after) == 12
    of_whole = exported("whole", "whole.jsonl")
    for row in [*after, *of_whole]:
        del row["meta"]["rlalign"]["run"]
    assert after == of_whole
    assert (run / "rows/PolicyGradient-1.jsonl").read_bytes() == (
        whole / "rows/PolicyGradient-1.jsonl"
    ).read_bytes()


def test_a_finished_run_without_its_commit_points_still_has_its_responses() -> None:
    run = ran()
    rows = exported()
    (run / "checkpoints").rename("aside")
    assert exported(file="again.jsonl") == rows
    (run / "model").rename("aside-model")
    result = call("export", "toy", "--samples", "none.jsonl")
    assert result.exit_code == 2 and "nothing is saved yet" in result.stderr


def test_a_log_that_was_cut_is_no_data() -> None:
    run = ran()
    file = run / "rows/PolicyGradient-1.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    result = call("export", "toy", "--samples", "s.jsonl")
    assert result.exit_code == 2 and "rows/PolicyGradient-1.jsonl: holds" in result.stderr
    assert not Path("s.jsonl").exists()


def test_model_and_samples_at_once() -> None:
    ran()
    result = call("export", "toy", "--samples", "s.jsonl", "--to", "model")
    assert result.stdout == "model: model\nsamples: s.jsonl, 36 responses\n"
    assert Path("model/model.safetensors").exists()


def test_phases_and_passes_have_ids_of_their_own() -> None:
    phases = [
        {"name": "grow", "algorithm": "collect"},
        {"name": "quiet", "algorithm": PIPELINE["algorithm"], "train": {"keep_responses": False}},
        {"name": "loud", "algorithm": PIPELINE["algorithm"]},
    ]
    top = {key: value for key, value in PIPELINE.items() if key != "algorithm"}
    ran({**top, "phases": phases, "repeat": 11})
    rows = exported()
    assert len({row["id"] for row in rows}) == len(rows) == 11 * 2 * 12
    where = [(row["meta"]["rlalign"]["repeat"], row["meta"]["rlalign"]["phase"]) for row in rows]
    assert where == sorted(where)  # the eleventh pass after the second
    assert {phase for _, phase in where} == {"grow", "loud"}


def test_refills_of_an_iteration_have_ids_of_their_own() -> None:
    ran({**PIPELINE, "algorithm": [PIPELINE["algorithm"], {"at-least": {"threshold": 1e9}}],
         "train": {**PIPELINE["train"], "refill": 5, "iterations": 1}})  # fmt: skip
    rows = exported()
    assert len(rows) == len({row["id"] for row in rows}) == 24  # of six examples


class Shouting(Task):
    """Its rewards read responses without spaces."""

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(str(i), str(i), ("1 2", "3"), (1.0, 2.0), meta={"about": i}) for i in range(4)]

    def postprocess(self, text: str) -> str:
        return text.replace(" ", "")


def test_texts_are_those_that_were_sampled() -> None:
    phases = [
        {"name": "grow", "algorithm": "collect"},
        {
            "name": "improve",
            "task": {"from": "grow"},
            "rewards": None,
            "responses": "logged",
            "algorithm": "rlalign.testing:PolicyGradient",
        },
    ]
    top = {key: value for key, value in PIPELINE.items() if key not in ("algorithm", "task")}
    whole = {**top, "task": "shouting", "phases": phases, "train": {"iterations": 2, "prompts": 4, "lr": 0.1}}
    run = ran({**whole, "rewards": ["rlalign.testing:Length"]}, shouting=Shouting)
    rows = exported()
    assert any(" " in text for row in rows for text in row["responses"])
    # What the task reads of them is one word, or none.
    assert all(
        score == bool(text)
        for row in rows
        for text, score in zip(row["responses"], row["scores"], strict=True)
    )
    assert {row["meta"]["about"] for row in rows} == {0, 1, 2, 3}
    lines = [line for line in logs.read(run / "metrics.jsonl") if line.get("phase") == "improve"]
    kept = [
        len(text.split()) + f for r in rows for text, f in zip(r["responses"], r["finished"], strict=True)
    ]
    assert {line["responses"] for line in lines} == {12}
    assert sum(line["tokens"] for line in lines) == sum(
        kept
    )  # the same tokens again, one pass over eight rows


def test_of_a_mix_only_sampled_responses_have_log_probs() -> None:
    ran({**PIPELINE, "task": "shouting", "rewards": ["rlalign.testing:Length"],
         "responses": {"mix": {"logged": 1, "sampled": 2}}}, shouting=Shouting)  # fmt: skip
    for row in exported():
        about = row["meta"]["rlalign"]
        assert about["source"] == ["logged", "sampled", "sampled"]
        assert [x is None for x in about["logprobs"]] == [True, False, False]
        assert about["generation"]["top_k"] == 4


def test_without_a_reward_there_are_no_scores() -> None:
    ran({**PIPELINE, "algorithm": "collect", "rewards": []})
    assert all("scores" not in row for row in exported())


class Lossy(Logits):
    """Reads every 1 as a 2, and nothing that begins with a 3."""

    def encode(self, examples: Sequence[Example]) -> Rollout:
        if any(text.startswith("3") for e in examples for text in e.responses):
            raise RLAlignError("three")
        read = [
            replace(
                e, responses=tuple(" ".join("2" if t == "1" else t for t in x.split()) for x in e.responses)
            )
            for e in examples
        ]
        return super().encode(read)


def test_what_is_read_back_otherwise_is_said() -> None:
    policy = {"lossy": {"vocabulary": 5, "ending": False}}
    ran({**PIPELINE, "policy": policy, "train": {**PIPELINE["train"], "lr": 0.0}}, lossy=Lossy)
    result = call("export", "toy", "--samples", "s.jsonl")
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    found = [
        (text, same)
        for row in rows
        for text, same in zip(row["responses"], row["meta"]["rlalign"]["same_tokens"], strict=True)
    ]
    assert all(same is not ("1" in text.split() or text.startswith("3")) for text, same in found)
    others = sum(not same for _, same in found)
    assert 0 < others < len(found)
    assert f"36 responses; {others} of them are other tokens when they are read back" in result.stdout


def test_collect_keeps_unless_told_otherwise() -> None:
    ran({**PIPELINE, "algorithm": "collect", "train": {"iterations": 1, "prompts": 4}})
    assert len(exported()) == 4
    ran(
        {
            **PIPELINE,
            "algorithm": "collect",
            "train": {"iterations": 1, "prompts": 4, "keep_responses": False},
        },
        "off",
    )
    assert call("export", "off", "--samples", "off.jsonl").exit_code == 2


def test_a_row_without_a_score_cannot_be_the_reward_of_a_later_phase() -> None:
    phases = [
        {"name": "grow", "algorithm": "collect"},
        {
            "name": "improve",
            "task": {"from": "grow"},
            "responses": "logged",
            "algorithm": PIPELINE["algorithm"],
        },
    ]
    top = {key: value for key, value in PIPELINE.items() if key != "algorithm"}
    with pytest.raises(ComponentError, match="responses without a stored score"):
        ran({**top, "rewards": [], "phases": phases})


def test_a_text_that_utf_8_cannot_hold() -> None:
    from rlalign.records.kept import write_rows

    row = {"responses": ["\ud800"], "meta": {"rlalign": {"same_tokens": [True]}}}
    assert write_rows(Path("s.jsonl"), [row]) == "s.jsonl, 1 responses"
    assert json.loads(Path("s.jsonl").read_text()) == row


def test_tensors_of_the_rollout_are_as_they_were() -> None:
    """Keeping responses changes nothing that is learned."""
    kept, other = ran(), {**PIPELINE, "train": {**PIPELINE["train"], "keep_responses": False}}
    plain = ran(other, "plain")
    from rlalign.records.checkpoint import load_tensors

    one, two = (load_tensors(run / "model/model.safetensors") for run in (kept, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
