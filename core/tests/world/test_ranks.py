"""Alone nobody is talked to. tests/test_processes.py has several."""

from __future__ import annotations

import re
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.learning import batching
from rlalign.testing.bench import run
from rlalign.world.comparing import alike, digest
from rlalign.world.joining import join
from rlalign.world.ranks import World, here

ROOT = Path(__file__).resolve().parents[3]


def test_alone_nothing_is_shared_and_nothing_costs() -> None:
    made, parameter = object(), torch.nn.Parameter(torch.ones(2))
    assert join() is here() and (here().rank, here().size, here().leads) == (0, 1, True)
    assert here().gather(lambda: made, "x") == [made] and here().lead(lambda: made, "x") is made
    assert here().summed(lambda: made, [parameter], "x") == [made] and parameter.grad is None
    here().same(lambda: pytest.fail("nobody to compare with"), "x")
    assert here().share(7) == range(7)
    # An iteration of the smallest example takes 100 ms and asks some ten times.
    assert min(timeit.repeat(lambda: here().gather(lambda: made, "x"), number=1000, repeat=5)) < 0.05


def test_a_run_alone_starts_no_process_group(tmp_path: Path) -> None:
    code = (
        "import sys; from rlalign.testing.bench import run; "
        # What the kit itself imports does not count.
        "sys.modules.pop('rlalign.world.comparing', None); "
        "run(sys.argv[1], {'task': 'numbers', 'policy': 'logits', 'rewards': ['token-sum'], "
        "'algorithm': 'policy-gradient', 'train': {'iterations': 1, 'prompts': 2}}); "
        "import torch; print(torch.distributed.is_initialized(), 'rlalign.world.comparing' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert said.split()[-2:] == ["False", "False"]


def test_what_is_compared() -> None:
    one = {
        "rows": torch.tensor([1, 2]),
        "x": torch.tensor([1.0, 2.0]),
        "said": ["a", 0.5, None],
        "zero": torch.tensor([0.0, 1.0]),
    }
    near, far = {**one, "x": one["x"] * (1 + 1e-6)}, {**one, "x": one["x"] * 1.01}
    others = [
        {**one, "rows": torch.tensor([2, 1])},
        {**one, "said": ["b", 0.5, None]},
        far,
        {"rows": one["rows"]},
    ]

    others += [{**one, "x": one["x"].flip(0)}]  # the same sum
    others += [{**one, "zero": torch.tensor([torch.nan, 1.0])}]

    def same(other: dict[str, Any]) -> bool:
        first, second = digest(one), digest(other)
        return all(alike(first.get(name), second.get(name)) for name in {**first, **second})

    one["endless"] = torch.tensor([torch.inf, 1.0])
    near = {**near, "endless": torch.tensor([torch.inf, 1.0 + 1e-6])}
    others = [{"endless": one["endless"], **other} for other in others]
    others += [{**one, "endless": torch.tensor([-torch.inf, 1.0])}]
    assert same(one) and same(near) and not any(map(same, others))


@pytest.mark.parametrize("count", [0, 1, 3, 7, 64])
def test_shares_are_all_places_once(count: int) -> None:
    for size in (2, 3, 8):
        shares = [World(rank, size).share(count) for rank in range(size)]
        assert [i for share in shares for i in share] == [*range(count)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("unit", ["response", "group", "step"])
def test_there_is_a_micro_batch_for_each_rank_where_there_are_units(unit: str, tmp_path: Path) -> None:
    pipeline = {
        "task": "numbers",
        "policy": "logits",
        "rewards": ["token-sum"],
        "algorithm": "policy-gradient",
        "generation": {"samples": 3},
        "train": {"iterations": 1, "prompts": 5},
    }
    _, session = run(tmp_path, pipeline)
    rollout = session.phase.run.sample(session.phase.draw.next(5))
    units = len(batching.units(rollout, unit))
    for ranks in (1, 2, 4, 5, 40):
        cuts = batching.dealt(rollout, 16384, unit, ranks=ranks)
        assert len(cuts) >= min(ranks, units)
        assert sorted(row for block in cuts for row in block.rows) == [*range(len(rollout))]


def test_only_the_world_talks_and_plugins_know_of_it_how_weights_are_cut() -> None:
    core = ROOT / "core/src/rlalign"
    talking = {
        str(path.relative_to(core))
        for path in core.rglob("*.py")
        if re.search(r"\b(import|from) torch\.distributed\b(?!\.checkpoint)", path.read_text())
    }
    assert talking == {"world/ranks.py", "world/joining.py", "world/sharding.py", "cli/processes.py"}
    for path in ROOT.glob("plugins/*/*/src/**/*.py"):
        text = path.read_text()
        assert not re.search(r"rlalign\.world(?!\.sharding\b)|torch\.distributed|WORLD_SIZE", text), path
