"""The model folders that ship: whole, small, made as they say they are, and worth aligning."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlalign.testing import run
from rlalign_plugin_toy_tasks import (
    ToyDialogue,
    ToyKeywords,
    ToyQuestions,
    ToyReviews,
    ToySummaries,
    ToyTranslation,
    models,
)

WORLDS = {
    cls.language: cls
    for cls in (ToyReviews, ToyKeywords, ToySummaries, ToyQuestions, ToyTranslation, ToyDialogue)
}
EXAMPLES = Path(__file__).parents[4] / "examples"
TRAINED = {
    "toy-reviews": ("causal-lm", "toy-sentiment"),
    "toy-keywords": ("seq2seq-lm", "toy-coverage"),
    "toy-summaries": ("seq2seq-lm", "toy-facts"),
    "toy-questions": ("seq2seq-lm", "toy-answer"),
    "toy-translation": ("seq2seq-lm", "toy-closeness"),
    "toy-dialogue": ("causal-lm", "toy-intent"),
}
"""The worlds whose models are trained, each with the model's kind and the reward that it leaves room in."""


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def made(name: str) -> dict[str, str]:
    return json.loads((models.FOLDER / name / "made.json").read_text())


def test_folders_are_as_the_languages_say(tmp_path):
    models.lay(tmp_path)
    for path in tmp_path.glob("*/*"):
        assert path.read_text() == (models.FOLDER / path.relative_to(tmp_path)).read_text(), "`models lay`"
    assert {p.name for p in models.FOLDER.iterdir()} == {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_small_and_those_that_were_made(name):
    assert (models.FOLDER / name / "model.safetensors").stat().st_size < 1_000_000
    assert digest(models.FOLDER / name) == made(name)["sha256"]


@pytest.mark.parametrize("name", TRAINED)
def test_tokenizers_take_a_text_there_and_back(name):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(models.FOLDER / name)
    cls = WORLDS[name]
    for example in cls(cls.Config(size=100)).examples("train"):
        text = f"{example.prompt} {example.responses[0]}"
        tokens = tokenizer(text)["input_ids"]
        assert len(tokens) == len(text.split())
        assert tokenizer.decode(tokens) == text
    assert tokenizer("zebra")["input_ids"] == [3]
    named = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert named == (0, 1, 2, 3)


def test_digits_are_read_one_by_one():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(models.FOLDER / "toy-digits")
    tokens = tokenizer("2031-04-17 5")["input_ids"]
    assert len(tokens) == 12 and 3 not in tokens
    assert tokenizer.decode(tokens) == "2031-04-17 5"


def start(name: str) -> dict[str, Any]:
    """What the shipped model does before anything is learned, by an evaluation of 512 samples."""
    pytest.importorskip("rlalign_plugin_hf")
    policy, reward = TRAINED[name]
    return {
        "task": name,
        "policy": {policy: {"path": str(models.FOLDER / name)}},
        "rewards": [reward],
        "algorithm": "rloo",
        "generation": {"samples": 2, "max_new_tokens": 29},
        "train": {"iterations": 1, "prompts": 4, "lr": 0.0},
        "evaluate": {
            "split": "val",
            "examples": 256,
            "use": [reward, "toy-grammar"],
            "generation": {"samples": 2},
        },
    }


def test_the_reviewer_is_fluent_and_undecided(tmp_path):
    """And stays so where nothing is learned (`lr: 0`)."""
    metrics = run(tmp_path, start("toy-reviews"))[0].metrics
    assert metrics["eval/toy-grammar"] > 0.94
    assert abs(metrics["eval/toy-sentiment"]) < 0.1
    assert metrics["eval/finished"] > 0.99


def test_the_keyword_writer_is_fluent_and_careless(tmp_path):
    metrics = run(tmp_path, start("toy-keywords"))[0].metrics
    assert metrics["eval/toy-grammar"] > 0.85
    assert 0.4 < metrics["eval/toy-coverage"] < 0.6
    assert metrics["eval/finished"] > 0.99


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ("toy-reviews", "toy-keywords")])
def test_the_others_are_fluent_and_leave_room(name, tmp_path):
    metrics = run(tmp_path, start(name))[0].metrics
    assert metrics["eval/toy-grammar"] > 0.8
    assert 0.4 < metrics[f"eval/{TRAINED[name][1]}"] < 0.8
    assert metrics["eval/finished"] > 0.98


OLDER = tuple(TRAINED)
"""Trained before a small vocabulary's logits were taken all at once, and before GPT-2 learned with another GELU: sums
have other last bits now, and what is made again is a model as good."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_training_again_gives_the_shipped_weights(name, tmp_path):
    """To the bit on the machine that `made.json` names, but for the older ones; elsewhere, a model as good."""
    pytest.importorskip("rlalign_plugin_hf")
    pytest.importorskip("rlalign_plugin_imitation")
    command = [
        sys.executable,
        "-m",
        "rlalign.cli",
        "run",
        "--plain",
        str(EXAMPLES / f"models/train-{name}.yaml"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    trained = tmp_path / f"runs/train-{name}"
    packed = tmp_path / "packed"
    packed.mkdir()
    sha256 = models.pack(trained / "model", packed)
    if name not in OLDER and {"sha256": made(name)["sha256"], **models.machine()} == made(name):
        assert sha256 == made(name)["sha256"]
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "eval/toy-grammar" in row][-1]
    assert last["eval/toy-grammar"] > 0.85


def finish(name: str, folder: Path, **train: float) -> list[dict[str, float]]:
    """An example's evaluations, with other options of `train`."""
    pytest.importorskip("rlalign_plugin_hf")
    pipeline = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    pipeline["train"] = {**pipeline.get("train", {}), **train}
    path = run(folder, pipeline)[0].path
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/responses" in row]


@pytest.mark.slow
def test_quickstart_aligns_without_breaking_the_language(tmp_path):
    first, *_, last = finish("quickstart", tmp_path)
    assert abs(first["eval/toy-sentiment"]) < 0.15
    assert last["eval/toy-sentiment"] > 0.7
    assert last["eval/toy-grammar"] > 0.9
    assert last["eval/kl/per_response"] < 4
    assert last["eval/finished"] > 0.98


@pytest.mark.slow
def test_nothing_is_learned_with_a_learning_rate_of_zero(tmp_path):
    first, *_, last = finish("quickstart", tmp_path, lr=0.0, iterations=5)
    for name in ("toy-sentiment", "toy-grammar", "toy-reviews/distinct-2"):
        assert last[f"eval/{name}"] == first[f"eval/{name}"]


@pytest.mark.slow
def test_without_a_price_on_leaving_the_reward_is_hacked(tmp_path):
    *_, last = finish("reward-hacking", tmp_path)
    assert last["eval/toy-sentiment"] > 0.8
    assert last["eval/toy-grammar"] < 0.2
    assert last["eval/kl/per_response"] > 20


@pytest.mark.slow
def test_keywords_are_covered_after_alignment(tmp_path):
    first, *_, last = finish("toy-keywords", tmp_path)
    assert last["eval/toy-coverage"] > first["eval/toy-coverage"] + 0.15
    assert last["eval/toy-grammar"] > 0.85
    assert last["eval/kl/per_response"] < 4


@pytest.mark.slow
def test_dates_are_learned_from_nothing(tmp_path):
    *_, last = finish("toy-dates", tmp_path)
    assert last["eval/dates"] > 0.8
