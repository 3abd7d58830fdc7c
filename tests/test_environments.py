"""The example of an environment, played by a policy of bytes."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlalign.cli import inspection
from rlalign.cli.commands import program
from rlalign.records.result import Result
from rlalign.testing import EnvironmentTests, run

ROOT = Path(__file__).resolve().parents[1]


sys.path.append(str(ROOT / "examples"))  # as beside a pipeline, and found by another process too
Guess: Any = importlib.import_module("guess").Guess


class TestGuess(EnvironmentTests):
    component = "guess:Guess"
    sayings = ("7", "twelve", "", "20")
    any_split = True  # it has examples for whatever split it is asked


def test_the_page_s_code_is_this_code() -> None:
    text = (ROOT / "docs/environments.md").read_text()
    assert f"```python\n{(ROOT / 'examples/guess.py').read_text()}```" in text
    assert inspect.getsource(TestGuess) in text


def pipeline(**changes: Any) -> dict[str, Any]:
    return {
        "task": {"guess": {"most": 5}},
        "policy": "bytes",
        "algorithm": "rloo",
        "generation": {"samples": 4, "max_new_tokens": 1},
        "train": {"iterations": 2, "prompts": 4, "lr": 0.5},
        "evaluate": {"examples": 4, "generation": {"temperature": 1.0}},
        **changes,
    }


def test_the_example_runs_and_shows_what_was_said(tmp_path: Path) -> None:
    _, ended = run(tmp_path, pipeline(), {"guess": Guess})
    (*_, last) = Result(ended.dir.path).samples
    roles = [message["role"] for message in last["transcript"]]
    assert roles[:3] == ["assistant", "user", "assistant"] and last["prompt"][0]["role"] == "user"
    shown = inspection.listed([last])
    assert (
        "told      A number, please." in shown or "told      Higher." in shown or "told      Lower." in shown
    )
    metrics = Result(ended.dir.path).metrics[-1]
    assert metrics["reward/played"] == metrics["reward/total"] and 1 < metrics["played/turns"] <= 6


def test_of_episodes_each_token_has_its_advantage(tmp_path: Path) -> None:
    """Beside the policy's words; what it was told has none."""
    said = {
        "algorithm": {"rloo": {"credit": "turn"}},
        "generation": {"samples": 4, "max_new_tokens": 2},
        "train": {"iterations": 8, "prompts": 4, "lr": 0.5},
    }
    _, ended = run(tmp_path, pipeline(**said), {"guess": Guess})
    rows = Result(ended.dir.path).learned
    assert [row["group"] for row in rows] == [0] * 4 + [1] * 4
    several = [row for row in rows if "advantage" not in row]
    assert several, "no episode has turns that were worth different things"
    for row in several:
        own = [message for message in row["transcript"] if message["role"] == "assistant"]
        told = [message for message in row["transcript"] if message["role"] != "assistant"]
        assert len(own) > 1 and not any("tokens" in message for message in told)
        for message in own:
            assert "".join(message["tokens"]) == message["content"]
            (value,) = set(message["steps"]["advantage"])  # one a turn
            assert value is not None
        values = [message["steps"]["advantage"][0] for message in own]
        assert len(set(values)) > 1
        paid = [message.get("reward", 0.0) for message in own]
        assert sum(paid) == pytest.approx(row["reward"], abs=1e-5)


def test_who_never_answers_with_a_number_learns_to(tmp_path: Path) -> None:
    """One byte a turn, at first any; after the words of the question the digits."""
    _, ended = run(
        tmp_path,
        pipeline(train={"iterations": 40, "prompts": 8, "lr": 0.5}, algorithm={"rloo": {"credit": "turn"}}),
        {"guess": Guess},
    )
    first, *_, last = Result(ended.dir.path).evaluations
    assert first["eval/played"] < -0.6 < 0 < last["eval/played"]


def test_it_is_described_and_checked(tmp_path: Path) -> None:
    (tmp_path / "guess.py").symlink_to(ROOT / "examples/guess.py")  # Python has it from there already
    (tmp_path / "pipeline.yaml").write_text(
        json.dumps(pipeline(task="guess:Guess", policy={"table": {"actions": 3}}))
    )
    said = CliRunner().invoke(program, ["check", str(tmp_path / "pipeline.yaml")])
    assert said.exit_code == 0, said.output
    assert "played" in said.output
