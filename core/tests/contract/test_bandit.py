"""A bandit's best policy is known: π* ∝ π_ref exp(R/β). RLOO with the KL as a reward finds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .conftest import Runs, metrics

PIPELINE: dict[str, Any] = {
    "task": "bandit",
    "policy": {"table": {"actions": 3}},
    "rewards": ["bandit-payout", {"kl": {"coef": 0.5}}],
    "algorithm": "rloo",
    "generation": {"samples": 8},
    "train": {
        "iterations": 100,
        "prompts": 32,
        "lr": 0.1,
        "clip": None,
        "dtype": "float64",
        "schedule": {"shape": "cosine"},
    },
    "checkpoints": {"every": 100},
}


@pytest.mark.parametrize("coef, optimum", [(0.5, (0.70538, 0.25950, 0.03512)), (2.0, None)])
def test_rloo_finds_the_closed_form_optimum(runs: Runs, coef: float, optimum: Any) -> None:
    session = runs({**PIPELINE, "rewards": ["bandit-payout", {"kl": {"coef": coef}}]})
    found = session.models["policy"].table[0].detach().softmax(0)
    expected = (torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64) / coef).softmax(0)
    if optimum is not None:
        torch.testing.assert_close(expected, torch.tensor(optimum, dtype=torch.float64), rtol=0, atol=1e-5)
    assert float((found - expected).abs().sum() / 2) < 0.01, found.tolist()
    # Reached exactly, every response's regularised reward is the same: β log Σ π_ref exp(R/β).
    optimal = coef * float(((torch.tensor([2.5, 2.0, 1.0]) / coef).exp().mean()).log())
    assert metrics(session)[-1]["reward/total"] == pytest.approx(optimal, abs=0.02)
