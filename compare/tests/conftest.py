"""Runs that take a moment, and the commands called on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import rlalign

BANDIT: dict[str, Any] = {
    "task": {"bandit": {"payouts": [2.5, 2.0, 1.0]}},
    "policy": {"table": {"actions": 3}},
    "rewards": ["bandit-payout", {"kl": {"coef": 0.5}}],
    "algorithm": "rloo",
    "generation": {"samples": 4},
    "train": {"iterations": 4, "prompts": 8, "lr": 0.05},
    "evaluate": {"every": 2, "examples": 8, "generation": {"samples": 4}},
}


def call(command: click.Command, *arguments: object, given: str | None = None) -> tuple[int, str]:
    """A command: its exit status, and what it said."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], input=given)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def run(name: str, seed: int = 0, *changes: str) -> None:
    ready = rlalign.load(BANDIT, list(changes), seed=seed)
    rlalign.run(ready, name=name, display=False)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed in range(3):
            run(f"slow-{seed}", seed)
            run(f"fast-{seed}", seed, "train.lr=0.2")
        run("again", 0)
        run("shorter", 0, "train.iterations=2")
        run("others", 0, "evaluate.examples=6")
    return folder


@pytest.fixture
def made(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs to work with; their folder is the current one."""
    shutil.copytree(once, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made" / "runs"


@pytest.fixture
def edited(made: Path) -> Callable[[str, str, str], None]:
    """Replace a text in a file of a run, which must hold it."""

    def edit(file: str, was: str, now: str) -> None:
        text = (made / file).read_text()
        assert was in text
        (made / file).write_text(text.replace(was, now))

    return edit
