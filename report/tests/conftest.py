"""A real run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign.testing import run

BANDIT = {
    "task": {"bandit": {"payouts": [2.5, 2.0, 1.0]}},
    "policy": {"table": {"actions": 3}},
    "rewards": ["bandit-payout", {"kl": {"coef": 0.5}}],
    "algorithm": "rloo",
    "generation": {"samples": 4},
    "train": {"iterations": 12, "prompts": 16, "lr": 0.05},
    "evaluate": {"every": 4, "use": ["bandit-payout", "kl"]},
}


@pytest.fixture(scope="session")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `rlalign run`."""
    _, ended = run(tmp_path_factory.mktemp("real"), BANDIT)
    return Path(ended.dir.path)
