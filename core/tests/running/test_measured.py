"""What a run took stands beside what was estimated of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from rlalign.costs.shape import Shape
from rlalign.records.result import Result
from rlalign.running.measured import STAGES, Memory
from rlalign.running.phase import Clock
from rlalign.testing import PolicyGradient, session
from rlalign.testing.logits import Logits

SMALL = Shape(
    weights=1000, learned=1000, adapters=100, prompt=500, response=500, head=400, layers=1, width=8, vocabulary=11,
    cache=16, block=100, kept=500, once=True,
)  # fmt: skip


class Said(Logits):
    """A small policy that says its shape."""

    def shape(self) -> Shape | None:
        return SMALL


def pipeline(policy: str) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": policy,
        "rewards": ["token-sum", {"kl": {"coef": 0.05}}],
        "algorithm": "learns",
        "train": {"iterations": 3, "prompts": 2},
        "generation": {"samples": 2, "max_new_tokens": 3},
    }


def test_estimate_and_measurement_lie_in_the_folder(tmp_path: Path) -> None:
    done = session(tmp_path, pipeline("said"), {"learns": PolicyGradient, "said": Said}, name="run")
    done.run()
    found = Result(done.dir.path).costs["learns"]
    assert (found["iterations"], found["unit"]) == (3, "processor seconds")
    for part in (*STAGES, "iteration"):
        assert found["estimated"][part] > 0 and found["measured"][part] > 0
    assert found["estimated"]["memory"] > 16 * SMALL.weights


def test_a_policy_without_a_shape_leaves_no_estimate(tmp_path: Path) -> None:
    done = session(tmp_path, pipeline("logits"), {"learns": PolicyGradient}, name="run")
    done.run()
    assert Result(done.dir.path).costs == {}
    assert not (done.dir.path / "costs.json").exists()


def test_the_highest_memory_is_of_what_came_since() -> None:
    memory = Memory(torch.device("cpu"))
    if not memory.reset():
        return  # a system that does not say
    large = torch.ones(32 * 2**20)  # 128 MiB
    del large
    most = memory.most
    assert most is not None and 120 * 2**20 < most < 200 * 2**20
    memory.reset()
    assert memory.most is not None and memory.most < 60 * 2**20


def test_a_clock_knows_whose_seconds_they_were() -> None:
    clock = Clock()
    with clock("waiting"):
        time.sleep(0.05)
    assert clock.worked["waiting"] < 0.02 < clock.seconds["waiting"]
