"""A study that is small enough to be run in a test."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlalign_study.file import Study
from rlalign_study.plan import Planned
from rlalign_study.rows import Row

SMALL = """
pipeline:
  task: {bandit: {payouts: [2.5, 2.0, 1.0]}}
  policy: {table: {actions: 3}}
  rewards: [bandit-payout, {kl: {coef: 0.5}}]
  generation: {samples: 2}
  train: {iterations: 2, prompts: 4}
  evaluate: {every: 1, examples: 8, use: [bandit-payout, kl]}
  checkpoints: {every: 1, last: 10}
metrics: {reward: bandit-payout, kl: kl/per_response}
worlds: {three: {}}
arms: {rloo: {set: {algorithm: rloo}}, reinforce: {set: {algorithm: reinforce}}}
seeds: 2
final: {final: {evaluate: {examples: 16}}}
"""
TUNED = """
grid: {lr: {train.lr: [0.01, 0.1]}, price: {rewards.kl.coef: [0.1, 0.5]}}
tuning: {seeds: [1000, 1001], best: final.reward}
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A study file: the small one, and what a test adds to it."""

    def write(*more: str) -> Path:
        (tmp_path / "small.yaml").write_text("\n".join([SMALL, *map(textwrap.dedent, more)]))
        return tmp_path / "small.yaml"

    return write


@pytest.fixture
def tuned() -> str:
    return TUNED


@pytest.fixture
def study(written: Callable[..., Path]) -> Study:
    """The small study with a grid of four settings, and all that a report can show."""
    return Study.read(
        written(
            TUNED,
            """
            collapse: {metric: reward, gain: 0.1, kept: 0.5, max: {kl: 5}}
            compare: {pairs: [[rloo, reinforce]], by: {final reward: final.reward}}
            stability: {against: reinforce, of: final.reward}
            tables: {Results: {reward: final.reward ±.3f, KL: final.kl .2f, at: seeds}}
            blocks: {readme.md: {columns: {arm: arm, against: final.reward less reinforce}, text: The end.}}
            """,
        )
    )


def row_of(planned: Planned, reward: float = 0.5, kl: float = 1.0, **said: Any) -> Row:
    """A run that is done."""
    curve = {"step": [0, 1, 2], "reward": [0.0, reward / 2, reward], "kl": [0.0, kl / 2, kl]}
    keys = ("stage", "world", "arm", "setting", "seed", "hash")
    metrics = {"final.reward": reward, "final.kl": kl, "seconds": 1.5}
    known = {"status": "done", "metrics": metrics, "curve": curve, "code": {"torch": "2"}} | said
    return Row(**{key: getattr(planned, key) for key in keys}, **known)


@pytest.fixture
def row() -> Callable[..., Row]:
    return row_of
