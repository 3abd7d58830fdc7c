"""The published losses as numbers: loss and gradient to 1e-9, through component, engine and policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.testing import Bench
from rlalign.testing.golden import GIVEN, golden, golden_gradient

from .conftest import GivenValue

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
CASES = GOLDEN["cases"]
NEAR = {"rel": 0, "abs": 1e-9}
ROUTES = [("A", 10**9, 10**9), ("A", 4, 2), ("B", 10**9, 2), ("T", 2, 3), (None, 1, 1)]
UNIFORM = {"draw": "uniform"}
PLAIN = {"form": "ref-free", **UNIFORM}


def _methods() -> dict[str, dict[str, Any]]:
    """Options by the golden file's names."""
    found: dict[str, dict[str, Any]] = {}
    for method in ("a_lol", "r_lol"):
        name = method.replace("_", "-")
        for clip, label in ((None, "noclip"), (0.9, "eps0.9"), (0.2, "eps0.2")):
            found[f"{method}_{label}"] = {name: {**UNIFORM, "clip": clip}}
        for beta in (0.0, 0.2):
            found[f"{method}_kl_beta{beta}"] = {name: {**UNIFORM, "form": "kl", "beta": beta}}
    for clip, label in ((None, "noclip"), (0.9, "eps0.9"), (0.2, "eps0.2"), (0.0, "eps0.0")):
        found[f"a_lol_seq_{label}"] = {"a-lol": {**UNIFORM, "form": "seq", "clip": clip}}
    found["a_lol_ref_free"] = {"a-lol": PLAIN}
    found["a_lol_ref_free_advantage_not_clamped"] = {"a-lol": {**PLAIN, "clamp": False}}
    found["wbc"] = {"r-lol": PLAIN}
    return found


METHODS = _methods()


def _rows(table: list[list[float]], mask: list[list[int]]) -> list[list[list[float]]]:
    """One response a prompt, as long as its mask."""
    return [[[x for x, m in zip(row, ms, strict=True) if m]] for row, ms in zip(table, mask, strict=True)]


def _bench(case: dict[str, Any], algorithm: Any, folder: Path) -> Bench:
    inputs, expected = case["inputs"], case["expected"]
    say = golden(
        _rows(expected["token_logp"], inputs["mask"]),
        _rows(expected["ref_token_logp"], inputs["mask"]),
        [[r] for r in inputs["reward"]],
    )
    models = {**say["models"], "value": {"given-value": {"values": list(inputs["value"])}}}
    ((method, options),) = algorithm.items()
    needs = {"reference": options.get("form") != "ref-free", "value": method == "a-lol"}
    pipeline = {
        **say,
        "models": {name: spec for name, spec in models.items() if needs[name]},
        "rewards": ["logged"],
        "algorithm": algorithm,
    }
    return Bench(folder, pipeline, {**GIVEN, "given-value": GivenValue})


CUT = [(case, route) for case in CASES for route in (ROUTES if case.startswith("F") else ROUTES[:1])]
"""Every case in one piece, one of them also in every way a step can be cut."""


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case, cut", CUT)
def test_golden(case: str, name: str, cut: tuple[Any, int, int], tmp_path: Path) -> None:
    data, (route, budget, chunk) = CASES[case], cut
    expected = data["expected"]["algorithms"][name]
    bench = _bench(data, METHODS[name], tmp_path)
    metrics, gradients = bench.gradient(bench.batch(), route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
    rows = _rows(expected["token_weight"], data["inputs"]["mask"])
    by_logprob = [[[-w / len(rows) for w in steps] for steps in row] for row in rows]
    by_logit = golden_gradient(bench.run.models.policy, by_logprob)  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if c != "C_theta_equals_ref"])
def test_a_weight_with_a_gradient_would_be_another_method(case: str, tmp_path: Path) -> None:
    """The negative control has the same loss and another gradient, and ours is not that one."""
    data, name = CASES[case], "a_lol_noclip"
    found = data["expected"]["algorithms"]
    right, wrong = found[name], found["WRONG_a_lol_noclip_weight_not_detached"]
    assert wrong["loss"] == pytest.approx(right["loss"], **NEAR)
    inputs = data["inputs"]

    def tensor(x: Any) -> torch.Tensor:
        return torch.tensor(x, dtype=torch.float64)

    def logp(x: torch.Tensor) -> torch.Tensor:
        chosen = x.log_softmax(-1).gather(-1, torch.tensor(inputs["tokens"])[..., None])[..., 0]
        return (chosen * tensor(inputs["mask"])).sum(1)

    logits = tensor(inputs["policy_logits"]).requires_grad_()
    mine = logp(logits)
    gain = (tensor(inputs["reward"]) - tensor(inputs["value"])).clamp_min(0)
    ratio = (mine - logp(tensor(inputs["ref_logits"]))).exp()
    (leaking,) = torch.autograd.grad(-(gain * ratio * mine).mean(), logits, retain_graph=True)
    (constant,) = torch.autograd.grad(-(gain * ratio.detach() * mine).mean(), logits)
    torch.testing.assert_close(leaking, tensor(wrong["grad_policy_logits"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(constant, tensor(right["grad_policy_logits"]), rtol=0, atol=1e-9)
    assert float((leaking - constant).abs().max()) > 1e-3
