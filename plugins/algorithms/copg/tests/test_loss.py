"""The formulas on published numbers and against loops: both gradients, the two wrong ones, invariances."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlalign_plugin_copg import copg_objective, detached_objective, squared_gap

CASES = json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]
PAIRED = ["copg_pairs_beta0.5", "copg_pairs_beta0.06", "copg_ipo_equivalence"]
NEAR = {"rel": 0, "abs": 1e-9}
reals = st.floats(-20, 20)
positive = st.floats(0.01, 5)


def f64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def objectives(logp: Tensor, other: Tensor, ref: Tensor, gap: Tensor, beta: float) -> dict[str, Tensor]:
    """What is minimised, by form, all with the gradient of −ℓ."""
    rho = (logp - ref[0]) - (other - ref[1])
    return {
        "autodiff": -copg_objective(gap, rho, beta),
        "detached": -detached_objective(gap, rho, logp - other, beta),
        "squared": squared_gap(gap, rho, beta) / (2 * beta),
    }


def graded(loss: Tensor, *leaves: Tensor) -> list[list[float]]:
    return [g.tolist() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_golden(name: str) -> None:
    """The mean over pairs, as the paper writes it."""
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    beta = CASES[name]["hyperparameters"]["beta"]
    one, two = (f64(inputs[f"logp_{i}"]).requires_grad_() for i in (1, 2))
    refs = f64([inputs["ref_logp_1"], inputs["ref_logp_2"]])
    gap = f64(inputs["reward_1"]) - f64(inputs["reward_2"])
    forms = objectives(one, two, refs, gap, beta)
    assert float(forms["autodiff"].mean().detach()) == pytest.approx(expected["loss"], **NEAR)
    for loss in forms.values():
        first, second = graded(loss.mean(), one, two)
        assert first == pytest.approx(expected["grad"]["logp_1"], **NEAR)
        assert second == pytest.approx(expected["grad"]["logp_2"], **NEAR)
    if name == "copg_ipo_equivalence":
        return
    # What the proof of Theorem 1 rests on: βℓ = ½ΔR² − ½(ΔR − βΔρ)².
    assert (-forms["autodiff"]).tolist() == pytest.approx(expected["ell_per_pair"], **NEAR)
    completed = (forms["squared"] - gap**2 / (2 * beta)).mean().detach()
    assert float(completed) == pytest.approx(expected["squared_form_loss"], **NEAR)


@pytest.mark.parametrize("name", PAIRED[:2])
def test_the_two_wrong_forms_are_other_methods(name: str) -> None:
    """β in place of β/2 inside the gradient is CoPG with 2β; β/2 without gradient is CoPG with β/2."""
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    beta = CASES[name]["hyperparameters"]["beta"]
    one, two = f64(inputs["logp_1"]).requires_grad_(), f64(inputs["logp_2"])
    rho = (one - f64(inputs["ref_logp_1"])) - (two - f64(inputs["ref_logp_2"]))
    gap = f64(inputs["reward_1"]) - f64(inputs["reward_2"])
    differentiated, detached = expected["must_not_equal"].values()
    wrong = {
        "R_β differentiated": ((gap - beta * rho) * rho, copg_objective(gap, rho, 2 * beta), differentiated),
        "R_β/2 detached": (
            (gap - beta / 2 * rho).detach() * rho,
            copg_objective(gap, rho, beta / 2),
            detached,
        ),
    }
    right = graded(-copg_objective(gap, rho, beta).mean(), one)[0]
    for what, (objective, same, numbers) in wrong.items():
        found = graded(-objective.mean(), one)[0]
        assert found == pytest.approx(numbers, **NEAR), what
        assert found == pytest.approx(graded(-same.mean(), one)[0], **NEAR), what
        assert any(abs(a - b) > 1e-3 for a, b in zip(found, right, strict=True)), what


@given(reals, reals, reals, reals, reals, positive)
def test_every_form_has_the_same_gradient(
    one: float, two: float, ref: float, other_ref: float, gap: float, beta: float
) -> None:
    """(i), and (v): what one log-prob gains the other loses."""
    logp, other = f64(one).requires_grad_(), f64(two).requires_grad_()
    forms = objectives(logp, other, f64([ref, other_ref]), f64(gap), beta)
    expected = -(gap - beta * ((one - ref) - (two - other_ref)))
    for loss in forms.values():
        first, second = graded(loss, logp, other)
        assert first == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert second == -first


@given(reals, reals, reals, positive, st.sampled_from(["autodiff", "detached", "squared"]))
def test_order_and_level_say_nothing(rho: float, other: float, gap: float, beta: float, form: str) -> None:
    """(ii) y and y' change places; (iii, iv) only differences are read, so a constant on both is no change."""
    zero = f64([0.0, 0.0])
    loss = objectives(f64(rho), f64(other), zero, f64(gap), beta)[form]
    swapped = objectives(f64(other), f64(rho), zero, f64(-gap), beta)[form]
    shifted = objectives(f64(rho + 3), f64(other + 3), zero, f64(gap), beta)[form]
    assert float(swapped) == pytest.approx(float(loss), rel=1e-9, abs=1e-9)
    assert float(shifted) == pytest.approx(float(loss), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5), positive)
def test_at_the_optimum_no_pair_has_a_gradient(rewards: list[float], beta: float) -> None:
    """(vi) π* ∝ π_ref exp(R/β) has βΔρ = ΔR."""
    rho = (f64(rewards) / beta).log_softmax(0).requires_grad_()
    for i, j in itertools.combinations(range(len(rewards)), 2):
        gap = f64(rewards[i] - rewards[j])
        for loss in (
            -copg_objective(gap, rho[i] - rho[j], beta),
            -detached_objective(gap, rho[i] - rho[j], rho[i] - rho[j], beta),
            squared_gap(gap, rho[i] - rho[j], beta),
        ):
            assert max(map(abs, graded(loss, rho)[0])) < 1e-9


def test_many_completions_golden() -> None:
    """1/(k−1) Σ_{i>j} by a loop, and the squared form, which Command A's report prints."""
    case, squared = CASES["copg_k4_equals_rloo_k4"], CASES["copg_k4_command_a_squared_form"]
    logp, ref, reward = (f64(case["inputs"][key]) for key in ("logp", "ref_logp", "reward"))
    logp.requires_grad_()
    beta, (groups, k) = case["hyperparameters"]["beta"], logp.shape
    ell, square = f64(0.0), f64(0.0)
    for i, j in itertools.combinations(range(k), 2):
        gap, rho = reward[:, i] - reward[:, j], (logp - ref)[:, i] - (logp - ref)[:, j]
        ell = ell + copg_objective(gap, rho, beta).sum() / (k - 1)
        square = square + squared_gap(gap, rho, beta).sum() / (k - 1)
    loss = -ell / (groups * k)
    assert float(loss.detach()) == pytest.approx(case["expected"]["loss"], **NEAR)
    (found,) = torch.autograd.grad(loss, logp, retain_graph=True)
    torch.testing.assert_close(found, f64(case["expected"]["grad"]["logp"]), rtol=0, atol=1e-9)
    advantage = f64(case["expected"]["rloo_advantages"])
    torch.testing.assert_close(found, -advantage / (groups * k), rtol=0, atol=1e-9)
    assert float(square.detach() / groups) == pytest.approx(squared["expected"]["loss"], **NEAR)
    (steeper,) = torch.autograd.grad(square / groups, logp)
    torch.testing.assert_close(steeper, f64(squared["expected"]["grad"]["logp"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(steeper, 2 * beta * k * found, rtol=0, atol=1e-9)
