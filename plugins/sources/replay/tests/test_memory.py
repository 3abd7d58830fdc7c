"""What is remembered, how much of it in memory, and by which law it is drawn."""

from __future__ import annotations

import gc
import os
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rlalign import Example, Rollout
from rlalign.data.rollout import logged_rollout
from rlalign_plugin_replay.memory import Memory, drawn, log_weights
from rlalign_plugin_replay.shelf import Shelf

# -- the shelf ----------------------------------------------------------------------------------------------


@given(
    steps=st.lists(st.one_of(st.none(), st.integers(0, 40)), max_size=80),
    in_memory=st.integers(0, 100),
)
def test_a_shelf_is_a_queue_wherever_its_entries_lie(steps: list[int | None], in_memory: int) -> None:
    shelf, plain = Shelf(in_memory), deque[bytes]()
    for n, size in enumerate(steps):
        if size is not None:
            data = bytes([n % 256]) * size
            shelf.append(data)
            plain.append(data)
        elif plain:
            shelf.popleft()
            plain.popleft()
        assert [shelf[i] for i in range(len(shelf))] == list(plain)
        assert shelf.held <= in_memory


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_files_end_with_what_lies_in_them(tmp_path: Path) -> None:
    gc.collect()
    before = open_files()
    shelf = Shelf(1000, tmp_path)
    for n in range(300):
        shelf.append(bytes(100))
        if n >= 50:
            shelf.popleft()
    assert len(shelf) == 50 and before < open_files() < before + 15
    assert list(tmp_path.iterdir()) == [], "a killed run would leave it"
    while len(shelf):
        shelf.popleft()
    gc.collect()
    assert open_files() == before


def test_a_thousand_entries_lie_in_few_files(tmp_path: Path) -> None:
    """A process may have 1024 open."""
    before, shelf = open_files(), Shelf(0, tmp_path)
    for n in range(2000):
        shelf.append(bytes([n % 256]) * 10)
    assert open_files() <= before + 1
    assert [shelf[i][0] for i in range(2000)] == [n % 256 for n in range(2000)]


def test_a_file_that_is_full_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the room of what is forgotten is free again."""
    monkeypatch.setattr("rlalign_plugin_replay.shelf.FULL", 1000)
    before, shelf = open_files(), Shelf(0, tmp_path)
    for n in range(3000):
        shelf.append(bytes([n % 256]) * 100)
        if n >= 50:
            shelf.popleft()
    assert before + 4 < open_files() < before + 8
    assert [shelf[i][0] for i in range(50)] == [n % 256 for n in range(2950, 3000)]


# -- the memory ---------------------------------------------------------------------------------------------


def group(name: str, tokens: int = 3, *, responses: int = 2) -> Rollout:
    example = Example(name, f"prompt {name}", responses=("x",) * responses)
    actions = [(list(range(tokens)), True)] * responses
    made = logged_rollout([example], [torch.tensor([1, 2])], actions, like=torch.zeros(()))
    return replace(made, logprobs_NT=torch.full((responses, tokens), -0.25))


def test_the_oldest_are_forgotten_first() -> None:
    memory = Memory(keep=3, in_memory=10**6)
    for n in range(5):
        memory.add(group(f"e{n % 4}"), tick=n, phase="p", value=n)
    assert len(memory) == 3
    assert [memory[i].examples[0].id for i in range(3)] == ["e2", "e3", "e0"]
    assert [memory.age(i, 5) for i in range(3)] == [3, 2, 1]
    e0, e1 = (group(name).examples[0] for name in ("e0", "e1"))
    assert memory.answers(e0) == [(2, 0), (2, 1)] and memory.answers(e1) == []
    assert memory.answers(replace(e0, prompt="another task's")) == []


@pytest.mark.parametrize("in_memory", [0, 5000, 10**9])
def test_a_state_is_the_memory_again(in_memory: int) -> None:
    memory, other = Memory(20, in_memory), Memory(20, in_memory // 2)
    for n in range(30):
        memory.add(group(f"e{n % 7}", tokens=1 + n % 5), tick=n // 3, phase=f"p{n % 3}", value=n / 7)
    other.add(group("of another run"), 0, "p", 0.0)
    other.load_state_dict(memory.state_dict())
    assert len(other) == 20
    for i in range(20):
        assert torch.equal(memory[i].actions_NT, other[i].actions_NT)
        assert torch.equal(memory[i].logprobs_NT, other[i].logprobs_NT)
    for law in ("uniform", "recent", "reward"):
        assert torch.equal(memory.log_weights(law, 11, 2.0, 0.5), other.log_weights(law, 11, 2.0, 0.5))
    assert [other.phase(i) for i in range(20)] == [f"p{n % 3}" for n in range(10, 30)]
    examples = [group(f"e{k}").examples[0] for k in range(7)]
    assert all(memory.answers(e) == other.answers(e) for e in examples)
    other.load_state_dict({})
    assert len(other) == 0 and other.state_dict() == {}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_is_bounded_over_ten_thousand_iterations(tmp_path: Path) -> None:
    """A group of 4 × 200 tokens an iteration: 150 MB in all, of which 15 MB are kept and 2 MB stay in memory."""
    memory = Memory(keep=1000, in_memory=2 * 2**20)
    memory.use(tmp_path)
    one = group("e", tokens=200, responses=4)
    sizes = []
    for tick in range(10_000):
        memory.add(one, tick, "p", 0.0)
        if tick % 1000 == 999:
            gc.collect()
            sizes.append((resident(), open_files()))
    assert len(memory) == 1000 and memory.age(0, 10_000) == 1000
    assert max(r for r, _ in sizes) - sizes[0][0] < 20 * 2**20, sizes
    assert max(f for _, f in sizes) - sizes[0][1] <= 2, sizes


# -- the law ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("uniform", [1.0, 1.0, 1.0, 1.0]),
        ("recent", [1 / 8, 1 / 4, 1 / 2, 1.0]),  # a half-life of 2 iterations, ages 6, 4, 2, 0
        ("reward", [1.0, 2.0, 1.0, 4.0]),  # exp(value / temperature), values 0, log 2, 0, log 4
    ],
)
def test_what_is_drawn_follows_the_law(law: str, expected: list[float]) -> None:
    age_E, value_E = torch.tensor([6.0, 4.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 1.0, 4.0]).log() * 0.7
    log_weight_E = log_weights(law, age_E.double(), value_E.double(), 2.0, 0.7)  # type: ignore[arg-type]
    counts = [0] * 4
    for n in range(4000):
        counts[drawn(log_weight_E, 1, torch.Generator().manual_seed(n))[0]] += 1
    share = [x / sum(expected) * 4000 for x in expected]
    assert chisquare(counts, share).pvalue > 1e-3
    others = {"uniform": [1, 1, 1, 1], "recent": [1, 2, 4, 8], "reward": [1, 2, 1, 4]}
    for other, weights in others.items():
        if other != law:
            share = [x / sum(weights) * 4000 for x in weights]
            assert chisquare(counts, share).pvalue < 1e-6, f"not told from `{other}`"


def test_two_draws_are_one_after_the_other() -> None:
    """The second in proportion to what is left: P(a, then b) = w_a · w_b / (1 − w_a)."""
    weight_E = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) / 10
    counts: dict[tuple[int, int], int] = {}
    for n in range(6000):
        first, second = drawn(weight_E.log(), 2, torch.Generator().manual_seed(n))
        counts[first, second] = counts.get((first, second), 0) + 1
    w = weight_E.tolist()
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    share = [6000 * w[a] * w[b] / (1 - w[a]) for a, b in pairs]
    assert chisquare([counts.get(pair, 0) for pair in pairs], share).pvalue > 1e-3


def test_no_more_are_drawn_than_there_are() -> None:
    assert sorted(drawn(torch.ones(3), 9, torch.Generator())) == [0, 1, 2]
    assert drawn(torch.zeros(0), 4, torch.Generator()) == []


def test_a_small_weight_is_no_weight_of_0() -> None:
    """exp(-5000) is 0 in every precision; what is likelier comes first all the same."""
    value_E = torch.tensor([-50.0, 0.0, -20.0, 3.0], dtype=torch.float64)
    log_weight_E = log_weights("reward", torch.zeros(4).double(), value_E, 1.0, 0.01)
    for seed in range(20):
        assert drawn(log_weight_E, 4, torch.Generator().manual_seed(seed)) == [3, 1, 2, 0]
