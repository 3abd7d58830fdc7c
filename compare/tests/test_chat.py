"""`rlalign chat`: two answers to one prompt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import rlalign
import rlalign_plugin_toy_tasks
from rlalign_compare.command import chat
from rlalign_compare.talk import Side

from .conftest import BANDIT, call

MODEL = Path(str(rlalign_plugin_toy_tasks.__file__)).parent / "models/toy-reviews"
CORRIDOR = {
    "task": "toy-corridor",
    "policy": {"rlalign.testing.text:Bytes": {}},
    "rewards": None,
    "train": {"iterations": 1, "prompts": 2, "lr": 1.0},
    "evaluate": {"examples": 2},
    "generation": {"samples": 2, "max_new_tokens": 6},
}


@pytest.fixture
def bytewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a policy over bytes, which learned in an environment."""
    monkeypatch.chdir(tmp_path)
    rlalign.run({**BANDIT, **CORRIDOR}, name="bytes", display=False)
    return tmp_path / "runs/bytes"


def answers(said: str, who: str) -> list[str]:
    return [line.removeprefix(who).strip() for line in said.splitlines() if line.startswith(who)]


def test_lines_of_a_pipe_are_asked_of_both(bytewise: Path) -> None:
    status, said = call(chat, "bytes", "--seed", 3, given="hello\n\nagain\n/new\nhello\n/quit\nnever\n")
    assert status == 0, said
    assert "asked without one" in said
    assert answers(said, "you") == ["hello", "again", "hello"]
    trained, base = answers(said, "trained"), answers(said, "base")
    assert len(trained) == len(base) == 3 and all(trained + base)
    untouched = rlalign.open(bytewise, task="rlalign.running.asking:NoTask")
    (row,) = untouched.sample(["hello"], seed=3, samples=1)
    assert trained[0] == row["response"].strip()


def test_alone(bytewise: Path) -> None:
    status, said = call(chat, "bytes", "--no-base", given="hello\n")
    assert status == 0 and answers(said, "base") == [] and len(answers(said, "trained")) == 1


def test_a_table_has_no_words(made: Path) -> None:
    status, said = call(chat, "slow-0", given="hello\n")
    assert status == 2 and said.count("\n") == 1
    assert "its policy `table` is no model of text, so there is nobody to talk with" in said


def test_a_chat_goes_on_and_each_side_with_its_own_words(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    model = rlalign.open(folder, ["evaluate.generation.max_new_tokens=6"])
    side = Side("trained", model, "the")
    assert not side.remembers
    first = side.answer("movie", 0)
    asked = [{"role": "system", "content": "the"}, {"role": "user", "content": "movie"}]
    again = [*asked, {"role": "assistant", "content": first}, {"role": "user", "content": "was"}]
    second = side.answer("was", 1)
    assert side.remembers and second == model.sample([again], seed=1, samples=1)[0]["response"]
    side.forget()
    assert side.answer("movie", 0) == first
