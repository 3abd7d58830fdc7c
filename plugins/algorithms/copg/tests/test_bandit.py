"""Bandits whose optimum is known: by exact expectations, by all pairs in the engine, and by short runs on samples."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

from rlalign import Example, Options, Task
from rlalign.testing import Bench, run
from rlalign_plugin_copg import copg_objective

table = pytest.importorskip("rlalign_plugin_table")
BANDITS = json.loads((Path(__file__).parent / "golden.json").read_text())["bandits"]
SKEWED = [name for name in BANDITS if name.startswith("bandit_skewed")]
MISSING = BANDITS["copg_missing_support"]


def f64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def variation(one: Tensor, other: Sequence[float]) -> float:
    """Total variation between two distributions."""
    return float((one.double() - f64(other)).abs().sum() / 2)


# -- exact expectations ----------------------------------------------------------------------------------------


def expected_loss(logits: Tensor, bandit: dict[str, Any], baseline: str | None = None) -> Tensor:
    """−E_μ1,μ2 ℓ over all arms; with `baseline`, the policy gradient of data taken as one's own."""
    given = bandit["inputs"]
    reward, ref, one, two = (f64(given[key]) for key in ("reward", "pi_ref", "mu_1", "mu_2"))
    logp = logits.log_softmax(0)
    rho = logp - ref.log()
    if baseline is None:
        ell = copg_objective(reward[:, None] - reward[None], rho[:, None] - rho[None], given["beta"])
        return -(one[:, None] * two[None] * ell).sum()
    b = 0.0 if baseline == "none" else (logp.exp() * reward).sum()
    return -((one + two) * (reward - given["beta"] * rho - b).detach() * logp).sum()


def fixed_point(bandit: dict[str, Any], start: Tensor, baseline: str | None = None) -> Tensor:
    """The policy where plain gradient descent on the expected loss ends."""
    logits = start.clone().requires_grad_()
    for _ in range(20_000):
        (gradient,) = torch.autograd.grad(expected_loss(logits, bandit, baseline), logits)
        if float(gradient.abs().max()) < 1e-10:
            break
        with torch.no_grad():
            logits -= 0.6 * gradient
    return logits.detach().softmax(0)


@pytest.mark.parametrize("name", ["copg_paper_bandit", *SKEWED])
def test_exact_fixed_points(name: str) -> None:
    """π*, whatever μ1 and μ2; the naive policy gradients on the same data end elsewhere."""
    bandit = BANDITS[name]
    ref, best = f64(bandit["inputs"]["pi_ref"]).log(), bandit["expected_optimum"]
    assert variation(fixed_point(bandit, ref), best) < 1e-7
    for method, baseline in (("pg_no_baseline", "none"), ("pg_value_baseline", "value")):
        found = fixed_point(bandit, ref, baseline)
        assert variation(found, bandit["fixed_points"][method]) < 1e-6
        assert variation(found, best) > 0.03


@pytest.mark.parametrize("seed", range(4))
def test_theorem_1(seed: int) -> None:
    """At π* no pair has a gradient, so nothing is stationary there but by all; and from anywhere one gets there."""
    bandit = BANDITS["bandit_skewed_ref_skewed_behaviour"]
    given = bandit["inputs"]
    best = f64(bandit["expected_optimum"])
    reward, ref = f64(given["reward"]), f64(given["pi_ref"])
    logits = best.log().requires_grad_()
    rho = logits.log_softmax(0) - ref.log()
    for i, j in itertools.combinations(range(3), 2):
        ell = copg_objective(reward[i] - reward[j], rho[i] - rho[j], given["beta"])
        (gradient,) = torch.autograd.grad(ell, logits, retain_graph=True)
        assert float(gradient.abs().max()) < 1e-12
    start = 4 * torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert variation(start.softmax(0), best.tolist()) > 0.1
    assert variation(fixed_point(bandit, start), best.tolist()) < 1e-7


def test_missing_support_exactly() -> None:
    """(ix) Arms that are never seen keep their logit; only the ratios of the others are right."""
    found = fixed_point(MISSING, f64(MISSING["inputs"]["pi_ref"]).log())
    assert variation(found, MISSING["expected_fixed_point_from_pi_ref"]) < 1e-7
    assert variation(found, MISSING["full_support_optimum"]) > 0.2
    assert float(found[0] / found[1]) == pytest.approx(MISSING["ratio_p0_over_p1_expected"], rel=1e-8)


# -- through the engine: a log of pairs and a table --------------------------------------------------------------


class Arms(table.Table):
    """A table that begins at given probabilities, which are the reference then."""

    class Config(table.Table.Config):
        """Options of `arms`."""

        probabilities: tuple[float, ...] = Field(description="of each arm, at first")

    def setup(self) -> None:
        super().setup()
        self.table.data[:] = torch.tensor(self.config.probabilities).log()


class Pulls(Task):
    """Logged pairs of arms, y from μ1 and y' from μ2, with what they paid."""

    class Config(Options):
        """Options of `pulls`."""

        reward: tuple[float, ...] = Field(description="what each arm pays")
        mu_1: tuple[float, ...] = Field(description="the first arm's distribution")
        mu_2: tuple[float, ...] = Field(description="the second arm's")
        pairs: int = Field(256, description="how many")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        c, rng = self.config, random.Random(0)
        ones, twos = (rng.choices(range(len(mu)), mu, k=c.pairs) for mu in (c.mu_1, c.mu_2))
        return [
            Example(str(i), "", tuple(map(str, arms)), tuple(c.reward[arm] for arm in arms))
            for i, arms in enumerate(zip(ones, twos, strict=True))
        ]


COMPONENTS: dict[str, type[Any]] = {"arms": Arms, "pulls": Pulls}


def pipeline(
    bandit: dict[str, Any], *, options: dict[str, Any] | None = None, **train: Any
) -> dict[str, Any]:
    given = bandit["inputs"]
    return {
        "task": {"pulls": {key: given[key] for key in ("reward", "mu_1", "mu_2")}},
        "policy": {"arms": {"actions": len(given["reward"]), "probabilities": given["pi_ref"]}},
        "algorithm": {"copg": {"beta": given["beta"], **(options or {})}},
        "train": {"iterations": 2, "epochs": 80, "prompts": 128, "lr": 0.1, **train},
        "checkpoints": {"every": 1000},
    }


@pytest.mark.parametrize(
    "name, options",
    [
        *(("copg_paper_bandit", {}), *((name, {}) for name in SKEWED)),
        *((SKEWED[1], {"form": "detached"}), (SKEWED[1], {"form": "squared", "ties": "drop"})),
    ],
)
def test_runs_on_sampled_pairs_find_the_optimum(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """From a fixed set of pairs that others drew, gone over again and again."""
    bandit = BANDITS[name]
    _, session = run(tmp_path, pipeline(bandit, options=options), COMPONENTS)
    found = session.models["policy"].table.detach()[0].softmax(0)
    assert variation(found, bandit["expected_optimum"]) < 1e-3


def test_an_arm_that_is_never_seen_does_not_move(tmp_path: Path) -> None:
    """(v, ix) The weights of a pair's two ∇log π add up to zero, so that the softmax pulls at no other arm."""
    _, session = run(tmp_path, pipeline(MISSING, dtype="float64"), COMPONENTS)
    logits = session.models["policy"].table.detach()[0]
    start = f64(MISSING["inputs"]["pi_ref"]).log()
    assert float(logits[2]) == pytest.approx(float(start[2]), abs=1e-6)
    assert float(logits[:2].mean()) == pytest.approx(float(start[:2].mean()), abs=1e-6)
    assert variation(logits.softmax(0), MISSING["expected_fixed_point_from_pi_ref"]) < 1e-3


def test_all_pairs_in_the_engine_are_the_expectation(tmp_path: Path) -> None:
    """Each pair of arms as often as μ1 × μ2 says: the gradient is the exact one, a half for the mean over responses."""

    class Enumerated(Pulls):
        """All pairs, a hundred of them in all."""

        def examples(self, split: str) -> Sequence[Example]:
            c = self.config
            arms = [
                pair
                for pair in itertools.product(range(3), repeat=2)
                for _ in range(round(100 * c.mu_1[pair[0]] * c.mu_2[pair[1]]))
            ]
            scored = [(pair, tuple(c.reward[arm] for arm in pair)) for pair in arms]
            return [Example(str(i), "", tuple(map(str, p)), s) for i, (p, s) in enumerate(scored)]

    given = {**BANDITS[SKEWED[1]]["inputs"], "mu_1": [0.7, 0.2, 0.1], "mu_2": [0.1, 0.1, 0.8]}
    say = pipeline({"inputs": given}, prompts=100, dtype="float64", iterations=1)
    bench = Bench(tmp_path, say, {**COMPONENTS, "pulls": Enumerated})
    batch = bench.batch()
    assert len(batch) == 200
    away = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64)
    bench.learner.assign(away)
    metrics, gradients = bench.gradient(batch)
    logits = away.clone().requires_grad_()
    loss = expected_loss(logits, {"inputs": given}) / 2
    (expected,) = torch.autograd.grad(loss, logits)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-7)  # π_ref was written in float32
    torch.testing.assert_close(gradients["policy/table"][0], expected, rtol=0, atol=1e-7)
