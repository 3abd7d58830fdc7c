"""What `rlalign check` says of language models, of which it loads no weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlalign
from rlalign import ConfigError

PIPELINE: dict[str, Any] = {
    "task": {"toy-numbers": {"prompt": "w1 w2"}},
    "algorithm": "rloo",
    "rewards": ["increasing-numbers"],
    "generation": {"samples": 2, "max_new_tokens": 8},
    "train": {"iterations": 1, "prompts": 2},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lm.yaml"


@pytest.fixture
def copied(folders: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))


def checked(file: Path, policy: Mapping[str, Any], **parts: Any) -> str:
    file.write_text(yaml.dump({"policy": policy, **PIPELINE, **parts}, sort_keys=False))
    return rlalign.load(file).check()


def refused(file: Path, policy: Mapping[str, Any], *told: str, **parts: Any) -> None:
    with pytest.raises(ConfigError) as error:
        checked(file, policy, **parts)
    lines = str(error.value).splitlines()
    assert len(lines) == len(told), lines
    for line, start in zip(lines, told, strict=True):
        number, _, said = start.partition(": ")
        assert said in line, line
        assert line.startswith(f"{file}:{number}: "), (line, file.read_text())


def test_a_sound_model_passes_without_its_weights_being_read(
    file: Path, copied: Path, folders: Mapping[str, Path]
) -> None:
    (copied / "model.safetensors").write_bytes(b"no weights")
    assert "policy built" in checked(file, {"causal-lm": {"path": "./model"}})
    assert "policy built" in checked(file, {"seq2seq-lm": {"path": str(folders["t5"])}})


@pytest.mark.parametrize(("named", "family"), [("causal-lm", "bart"), ("seq2seq-lm", "gpt2")])
def test_a_model_of_the_other_kind(file: Path, folders: Mapping[str, Path], named: str, family: str) -> None:
    other = {"causal-lm": "seq2seq-lm", "seq2seq-lm": "causal-lm"}[named]
    with pytest.raises(ConfigError, match=f"lm.yaml:1: policy `{named}`: .* use `policy: {{{other}: …}}`"):
        checked(file, {named: {"path": str(folders[family])}})


@pytest.mark.parametrize("text", ["{nonsense", "[1]", '{"model_type": "nothing-like-it"}'])
def test_a_bad_config_is_called_so(file: Path, copied: Path, text: str) -> None:
    (copied / "config.json").write_text(text)
    told = f"1: policy `causal-lm`: {copied}: its config.json cannot be used"
    refused(file, {"causal-lm": {"path": "./model"}}, told)


def test_files_that_a_model_lacks(file: Path, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    refused(file, {"causal-lm": {"path": "./model"}}, f"1: policy `causal-lm`: {copied}: holds no weights")
    assert checked(file, {"causal-lm": {"path": "./model", "init": "random"}})
    for tokenizer in copied.glob("tokenizer*"):
        tokenizer.unlink()
    told = f"1: policy `causal-lm`: {copied}: holds no tokenizer"
    refused(file, {"causal-lm": {"path": "./model", "init": "random"}}, told)


def test_several_faults_are_told_together(file: Path, copied: Path) -> None:
    shutil.copytree(copied, copied.parent / "other")
    (copied.parent / "other" / "config.json").write_text("{")
    refused(
        file,
        {"causal-lm": {"path": "./model"}},
        "14: generation.max_new_tokens: policy `causal-lm`: 48 leave no room for a prompt: the model reads 48 tokens",
        f"19: models.reference: policy `causal-lm`: {copied.parent / 'other'}: its config.json cannot be used",
        f"4: task `dataset`, asked for its examples of `train`: {copied.parent / 'no.jsonl'}: there is no such file",
        task={"dataset": {"path": "no.jsonl", "prompt": "question"}},
        rewards=["increasing-numbers", "kl"],
        generation={"samples": 2, "max_new_tokens": 48},
        models={"reference": {"of": "./other"}},
    )


def test_wrong_columns_and_splits(file: Path, copied: Path) -> None:
    (copied.parent / "rows.jsonl").write_text(json.dumps({"prompt": "w1"}) + "\n")
    told = (
        "4: task `dataset`, asked for its examples of `test` (",
        "4: task `dataset`, asked for its examples of `train`: rows.jsonl: `prompt` names a column `question`",
    )
    task = {"dataset": {"path": "rows.jsonl", "prompt": "question"}}
    refused(file, {"causal-lm": {"path": "./model"}}, *told, task=task, evaluate={"split": "test"})


def test_large_files_are_read_in_part(file: Path, copied: Path) -> None:
    rows = copied.parent / "rows.jsonl"
    rows.write_text('{"prompt": "w1 w2"}\n' * 2_000 + "no JSON\n")
    said = checked(file, {"causal-lm": {"path": "./model"}}, task={"dataset": {"path": "rows.jsonl"}})
    assert re.search(r"^  data +train 1,000 or more$", said, re.MULTILINE)


def test_a_name_on_the_hub_is_not_looked_up(file: Path) -> None:
    policy = {"causal-lm": {"path": "some/model"}}
    assert "policy built" in checked(file, policy, task={"dataset": {"hub": "some/data"}})


def test_adapters_without_the_library_that_makes_them(file: Path, copied: Path) -> None:
    (copied.parent / "absent").mkdir()
    (copied.parent / "absent" / "peft.py").write_text("raise ImportError('no peft here')")
    policy = {"causal-lm": {"path": "./model", "lora": {"r": 2}}}
    file.write_text(yaml.dump({"policy": policy, **PIPELINE}, sort_keys=False))
    paths = os.pathsep.join([str(copied.parent / "absent"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "rlalign.cli", "check", "lm.yaml"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 2
    said = (
        "error: lm.yaml:1: policy `causal-lm`: `lora` needs peft, which is not installed: `pip install peft`"
    )
    assert said in done.stderr


def test_what_check_passes_and_refuses_run_does_too(file: Path, copied: Path) -> None:
    """The same look is taken before a run is begun."""
    policy = {"causal-lm": {"path": "./model"}}
    generation = {"samples": 2, "max_new_tokens": 47}
    for prompt, sound in (("w1", True), ("w1 w2", False)):
        parts = {"task": {"toy-numbers": {"prompt": prompt, "size": 2}}, "generation": generation}
        file.write_text(yaml.dump({"policy": policy, **PIPELINE, **parts}, sort_keys=False))
        pipeline = rlalign.load(file)
        if sound:
            pipeline.check()
            rlalign.run(pipeline, display=False)
            continue
        said = []
        for begin in (rlalign.Pipeline.check, partial(rlalign.run, display=False)):
            with pytest.raises(ConfigError) as error:
                begin(pipeline)
            said.append(str(error.value))
        assert said[0] == said[1]
        assert "example `train-0`: its prompt's 2 tokens are more than the 1 that" in said[0]
        assert "(so are 1 more of 2)" in said[0]
