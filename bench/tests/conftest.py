"""A suite that is small enough to be run in a test, and what comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlalign_bench.ledger import Ledger
from rlalign_bench.command import bench
from rlalign_bench.entry import Entry
from rlalign_bench.suite import Suite

SMALL = Path(__file__).with_name("small.yaml")


def call(*arguments: object) -> tuple[int, str]:
    """`rlalign bench …`: its exit status, and what it said."""
    done = CliRunner().invoke(bench, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small suite, run."""
    folder = tmp_path_factory.mktemp("suite")
    shutil.copy(SMALL, folder)
    status, said = call(folder / "small.yaml", "run", "--jobs", 2, "--runs", folder / "runs")
    assert status == 0, said
    return folder


@pytest.fixture
def made(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, which is the current folder."""
    shutil.copytree(once, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture
def fresh(made: Path) -> Path:
    """The file of a suite of which nothing is run, on another machine as it were."""
    (made / "elsewhere").mkdir()
    return Path(shutil.copy(made / "small.yaml", made / "elsewhere"))


def ledger_of(file: Path) -> Ledger:
    return Ledger.read(Suite.read(file), file.parent / "small-results")


@pytest.fixture
def entries(made: Path) -> dict[str, Entry]:
    """The entries of the suite, by key."""
    return {one.key: one for one in ledger_of(made / "small.yaml").entries}


@pytest.fixture
def changed() -> Callable[..., Entry]:
    """An entry with another provenance, whose hashes its maker made anew."""

    def change(one: Entry, provenance: dict[str, Any] | None = None, **said: Any) -> Entry:
        made = replace(one.provenance, **(provenance or {}))
        return replace(one, provenance=replace(made, hash=made.what), **said)

    return change
