"""What `rlalign export` writes is what other parts read: samples as the task `dataset`'s data, a model as a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

import rlalign
from rlalign.cli.commands import program
from rlalign.records import logs
from rlalign.running.opening import open_model
from rlalign_plugin_dataset import Dataset

BANDIT = {
    "task": "bandit",
    "policy": {"table": {"actions": ["left", "right", "stop"], "steps": 4, "end": "stop", "state": "step"}},
    "rewards": [{"rlalign.testing:Length": None, "weight": 0.3}],
    "algorithm": "rloo",
    "generation": {"samples": 4},
    "train": {"iterations": 4, "prompts": 8, "lr": 0.1},
    "evaluate": {"examples": 5, "generation": {"samples": 3, "temperature": 0.5}},
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, list(arguments), prog_name="rlalign")


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(yaml.dump(BANDIT, sort_keys=False))
    assert call("run", "toy.yaml", "--plain").exit_code == 0
    result = call("export", "toy", "--new", "--samples", "s.jsonl", "--to", "model")
    assert result.exit_code == 0, result.output
    return tmp_path


def test_exported_samples_are_read_back_as_logged_data(exported: Path) -> None:
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    examples = Dataset(Dataset.Config(path=exported / "s.jsonl")).examples("train")
    assert len(examples) == len(rows) == 5
    shown = [row["response"] for row in logs.read("runs/toy/samples.jsonl")][-8:]
    assert [text for example in examples for text in example.responses][:8] == shown
    for example, row in zip(examples, rows, strict=True):
        assert (example.id, example.prompt) == (row["id"], row["prompt"])
        assert list(example.responses) == row["responses"] and len(example.responses) == 3
        assert list(example.scores) == row["scores"] and list(example.finished) == row["finished"]
        assert dict(example.meta) == row["meta"]
    weighted = [0.3 * len(text.split()) for text in examples[0].responses]
    assert list(examples[0].scores) == pytest.approx(weighted, rel=1e-6)


def test_the_exported_model_gives_the_exported_log_probs(exported: Path) -> None:
    opened = open_model("model", {"task": {"dataset": {"path": "s.jsonl"}}, "evaluate": {"split": "train"}})
    phase = opened.ready().phase
    examples = list(phase.draw.data)
    rollout = phase.logged.rollout(examples)  # at temperature 1
    full_NT = phase.outputs.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT
    found = full_NT.double().where(rollout.mask_NT, 0.0).sum(1)
    hot = call("export", "toy", "--new", "--samples", "hot.jsonl", "evaluate.generation.temperature=1")
    assert hot.exit_code == 0
    written = {}
    for line in Path("hot.jsonl").read_text().splitlines():
        row = json.loads(line)
        about = row["meta"]["rlalign"]
        assert about["logprobs"] == about["full_logprobs"]
        written |= dict(
            zip(zip(row["responses"], row["finished"], strict=True), about["full_logprobs"], strict=True)
        )
    texts = [(t, f) for e in examples for t, f in zip(e.responses, e.finished, strict=True)]
    both = [(float(found[i]), written[key]) for i, key in enumerate(texts) if key in written]
    assert len(both) >= 3
    torch.testing.assert_close(*(torch.tensor(side) for side in zip(*both, strict=True)))


def test_a_run_learns_from_exported_samples(exported: Path) -> None:
    later = {
        **{key: BANDIT[key] for key in ("policy", "train")},
        "task": {"dataset": {"path": "s.jsonl"}},
        "algorithm": "reinforce",
        "responses": "logged",
    }
    Path("later.yaml").write_text(yaml.dump(later, sort_keys=False))
    result = call("run", "later.yaml", "--plain")
    assert result.exit_code == 0, result.output


def test_a_model_folder_says_itself_what_policy_it_is(exported: Path) -> None:
    measured = ["--reward", "rlalign.testing:Length", "--examples", "5", "--json"]
    decoding = ["evaluate.generation.samples=3", "evaluate.generation.temperature=0.5"]
    own = json.loads(call("eval", "toy", "--json").stdout)
    found = json.loads(call("eval", "model", "--task", "bandit", *measured, *decoding).stdout)
    assert found["model"] == "model"
    for name in ("responses", "tokens", "length", "finished", "Length"):
        assert found[f"eval/{name}"] == own[f"eval/{name}"], name


def test_a_split_that_is_not_there(exported: Path) -> None:
    result = call("eval", "toy", "--task", "dataset: {path: s.jsonl}", "--split", "nosuch")
    assert result.exit_code == 2 and "has no split `nosuch`" in result.stderr


@pytest.mark.parametrize("base", ["reviews", "t5"])
def test_the_card_of_a_language_model_loads_it_as_it_says(base: str, tmp_path: Path, capsys: Any) -> None:
    """Both snippets are run, as they stand in the README."""
    policies: dict[str, Any] = {
        "reviews": {"causal-lm": {"path": "pkg:rlalign_plugin_toy_tasks/models/toy-reviews"}},
        "t5": {"seq2seq-lm": {"path": "pkg:rlalign_plugin_toy_tasks/models/toy-summaries"}},
    }
    pipeline = {
        "task": "toy-reviews" if base == "reviews" else "toy-summaries",
        "policy": policies[base],
        "rewards": ["rlalign.testing:Length"],
        "algorithm": "rloo",
        "generation": {"samples": 2, "max_new_tokens": 4},
        "train": {"iterations": 1, "prompts": 2},
    }
    folder = rlalign.run(pipeline, root=tmp_path, name="one", display=False).model
    card = (folder / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        capsys.readouterr()
        exec(snippet, {"here": str(folder)})
        assert capsys.readouterr().out.strip()
    assert "log π(y_i,t)" in card and "Back to basics" in card
