"""`too_long: drop` leaves examples out of a run before its weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError, Example, RLAlignError, Task
from rlalign.running.opening import open_run
from rlalign.testing import registry, run


def test_long_prompts_are_dropped(
    tmp_path: Path, pipeline_of: Callable[..., dict[str, Any]], components: Any
) -> None:
    pipeline = pipeline_of("gpt2", {"max_prompt_tokens": 4, "too_long": "drop"})
    pipeline["train"] = {"passes": 2, "prompts": 2, "lr": 1e-3}
    pipeline["evaluate"] = {"use": ["evens"], "split": "val", "examples": 4}
    finished, done = run(tmp_path, pipeline, components)
    assert done.ticks == 2, "two passes over the two prompts that are left"
    samples = [json.loads(line) for line in (finished.path / "samples.jsonl").read_text().splitlines()]
    assert {len(sample["prompt"].split()) for sample in samples} == {1, 4}
    said = "policy `causal-lm` leaves out 2 of 4 examples of `train`; the first is `2`: its prompt's 8 tokens"
    assert any(note.startswith(said) for note in done.display.notes)
    with pytest.raises(ConfigError, match="prompt 2 cannot be read: its prompt's 5 tokens are more"):
        open_run(finished.path, {}, registry=registry(components)).sample(["w1", "w1 w2 w3 w4 w5"])


def test_or_stop_the_run_before_it_begins(
    tmp_path: Path, pipeline_of: Callable[..., dict[str, Any]], components: Any
) -> None:
    pipeline = pipeline_of("t5", {"max_prompt_tokens": 6})
    with pytest.raises(RLAlignError, match=r"example `2`: its prompt's 9 tokens"):
        run(tmp_path, pipeline, components)
    assert not list((tmp_path / "runs").glob("*"))


def test_prompts_of_words_that_the_tokenizer_does_not_know(
    tmp_path: Path,
    pipeline_of: Callable[..., dict[str, Any]],
    components: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(tmp_path / "known", pipeline_of("gpt2", {}), components)
    assert "unknown to the tokenizer" not in caplog.text

    class Foreign(Task):
        def examples(self, split: str) -> list[Example]:
            return [Example(str(i), "bonjour le monde w1") for i in range(4)]

    foreign = {**pipeline_of("gpt2", {}), "task": "foreign"}
    run(tmp_path / "foreign", foreign, {**components, "foreign": Foreign})
    assert caplog.text.count("75 % of the prompts' tokens are unknown to the tokenizer") == 1
