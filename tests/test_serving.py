"""The rewards of the repository's packages say the same inline, in a process of their own, and from a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Example, Rollout
from rlalign.config.pipeline import Isolate, Item
from rlalign.config.registry import Registry
from rlalign.config.rewards import RewardsFile, load_rewards
from rlalign.data.rollout import logged_rollout
from rlalign.errors import ComponentError
from rlalign.serving.host import Alone
from rlalign.serving.served import served
from rlalign.serving.server import Server, host_all

REWARDS = """\
rewards:
- dates
- increasing-numbers
- toy-coverage
- toy-grammar
- toy-sentiment
- function: {path: "mine.py:score"}
"""
MINE = """\
def score(texts, prompts, references, meta, examples):
    return [len(t) / 3 + len(p) / 7 + sum(map(len, r)) + m["x"] for t, p, r, m in zip(texts, prompts, references, meta)]
"""
NAMES = ("dates", "increasing-numbers", "toy-coverage", "toy-grammar", "toy-sentiment", "function")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "mine.py").write_text(MINE)
    (folder / "rewards.yaml").write_text(REWARDS)
    return folder / "rewards.yaml"


@pytest.fixture(scope="module")
def read(file: Path) -> RewardsFile:
    return load_rewards(file, Registry(trust=True))


@pytest.fixture(scope="module")
def port(file: Path) -> Iterator[int]:
    server = Server(host_all(file, Registry(trust=True)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server.port
    server.close()
    thread.join()


def run() -> Any:
    return Alone({"phase": "p", "repeat": 0, "iteration": 0, "step": 0, "tick": 0})


def responses() -> Rollout:
    texts = [
        "on 2001-02-03",
        "1 2 3 2",
        "the cat sees a dog",
        "a great, great film",
        "",
        "Zürich \U0001f600 \ud800",
    ]
    examples = [
        Example(
            id=str(g),
            prompt="the words: cat dog",
            responses=tuple(texts[2 * g : 2 * g + 2]),
            meta={
                "references": ["cat", "a dog"],
                "language": "toy-reviews",
                "keywords": ["cat", "dog"],
                "x": g / 10,
            },
        )
        for g in range(3)
    ]
    actions = [(list(range(len(text) + 1)), True) for text in texts]
    return logged_rollout(examples, [torch.zeros(1)] * 3, actions, like=torch.zeros(()))


def inline(item: Item) -> torch.Tensor:
    real = item.build()
    real.setup(run())
    value: torch.Tensor = real.reward(rollout=responses()).value  # type: ignore[attr-defined]
    return value


def asked(item: Item, folder: Path, **isolate: Any) -> torch.Tensor:
    where = item.model_copy(update={"isolate": Isolate(retries=0, **isolate)})
    one: Any = served(where.build(), where, folder, trust=True, seed=0)
    try:
        one.setup(run())
        value: torch.Tensor = one.reward(run=run(), rollout=responses()).value
    finally:
        one.close()
    return value


@pytest.mark.parametrize("name", NAMES)
def test_the_same_from_a_server(read: RewardsFile, port: int, name: str) -> None:
    here, there = inline(read.items[name]), asked(read.items[name], read.folder, at=f"127.0.0.1:{port}")
    assert there.dtype == here.dtype and torch.equal(there, here)


@pytest.mark.parametrize("name", ["function", pytest.param("toy-sentiment", marks=pytest.mark.slow)])
def test_the_same_in_a_process_of_its_own(read: RewardsFile, name: str) -> None:
    here, there = inline(read.items[name]), asked(read.items[name], read.folder)
    assert there.dtype == here.dtype and torch.equal(there, here)


def test_code_that_changed_is_told(read: RewardsFile, port: int, file: Path) -> None:
    """The server has the function as it was."""
    (file.parent / "mine.py").write_text(MINE.replace("/ 3", "/ 4"))
    try:
        item = load_rewards(file, Registry(trust=True)).items["function"]
        with pytest.raises(Exception, match="`function` has other options or other code here"):
            asked(item, file.parent, at=f"127.0.0.1:{port}")
    finally:
        (file.parent / "mine.py").write_text(MINE)


@pytest.mark.slow
def test_a_model_that_scores_says_where(tmp_path: Path) -> None:
    """In a process of its own there is no policy to stand beside."""
    from rlalign_plugin_model_rewards.testing import tiny_scorer

    path = tiny_scorer(tmp_path / "bert", "bert-nli")
    file, found = tmp_path / "rewards.yaml", []
    for more in ("", ", device: cpu"):
        file.write_text(f"rewards: [classifier: {{path: {path}, label: neutral{more}}}]\n")
        found.append(load_rewards(file, Registry(trust=True)).items["classifier"])
    for item, said in zip(found, ("leave out `isolate`, or say on which `device`", None), strict=True):
        where = item.model_copy(update={"isolate": Isolate(retries=0)})
        one: Any = served(where.build(), where, tmp_path, trust=True, seed=0)
        with pytest.raises(ComponentError, match=said) if said else nullcontext():
            one.setup(run())
        one.close()
