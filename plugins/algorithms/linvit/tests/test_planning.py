"""Planning under a price on leaving a prior, against numbers computed elsewhere and against what must hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlalign_plugin_linvit import count_bonus, divergence, exact, plan, regularised

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())


def t(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, t(expected), rtol=0, atol=1e-9)


# -- published and precomputed numbers --------------------------------------------------------------------


@pytest.mark.parametrize("lam", list(GOLDEN["exact"]["expected"]))
def test_a_known_world(lam: str) -> None:
    case, expected = GOLDEN["exact"]["inputs"], GOLDEN["exact"]["expected"][lam]
    q_HSA, v_hS, log_pi_HSA = exact(t(case["P"]), t(case["r"]), t(case["prior"]), float(lam))
    close(q_HSA, expected["Q"])
    close(v_hS, expected["V"])
    close(log_pi_HSA.exp(), expected["pi"])
    close(t(case["start"]) @ v_hS[0], expected["regularised_value"])


@pytest.mark.parametrize(
    "name, lam", (("0.5", 0.5), ("0", 0.0), ("inf", math.inf), ("1e-3", 1e-3), ("1e4", 1e4))
)
def test_a_known_world_that_stays_the_same(name: str, lam: float) -> None:
    case, expected = GOLDEN["known"]["inputs"], GOLDEN["known"]["expected"][f"lambda_{name}"]
    turns = case["H"]
    p, r, prior = t(case["P[s][a][s']"]), t(case["r[s][a]"]), t(case["pi_llm[s][a]"])
    _, v_hS, log_pi_HSA = exact(*(x.expand(turns, *x.shape) for x in (p, r, prior)), lam)
    close(v_hS[:turns], expected["V_h0_first"])
    close(log_pi_HSA.exp(), expected["pi_h0_first"])


def test_counts() -> None:
    case, expected = GOLDEN["counts"]["inputs"], GOLDEN["counts"]["expected"]
    counts, prior = torch.tensor(case["counts"]), t(case["prior"])
    bonus = count_bonus(counts.sum(3), case["c"])
    found = plan(counts, t(case["reward_sums"]), prior, case["lambda"], bonus)
    close(found.q_upper_HSA, expected["Q_upper"])
    close(found.q_lower_HSA, expected["Q_lower"])
    close(found.upper_hS, expected["V_upper"])
    close(found.lower_hS, expected["V_lower"])
    close(found.log_pi_HSA.exp(), expected["pi"])
    assert one_hot(found.width(prior).argmax(2), 3).tolist() == expected["widest"]


# -- what must hold ---------------------------------------------------------------------------------------


def world(seed: int, turns: int = 4, states: int = 3, actions: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """(P, r, prior), the last of the places to go to being the end."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(turns, states, *shape, generator=generator, dtype=torch.float64)

    return (4 * drawn(actions, states + 1)).softmax(3), drawn(actions), (2 * drawn(actions)).softmax(2)


def counted(p_HSAZ: Tensor, r_HSA: Tensor, tries: int, seed: int) -> tuple[Tensor, Tensor]:
    """Counts and sums after so many tries of everything; rewards are 0 or 1 with mean r."""
    generator = torch.Generator().manual_seed(seed)
    to = p_HSAZ.flatten(0, 2).multinomial(tries, replacement=True, generator=generator)
    counts_HSAZ = one_hot(to, p_HSAZ.shape[3]).sum(1).view(p_HSAZ.shape)
    paid = torch.rand(tries, *r_HSA.shape, generator=generator, dtype=torch.float64) < r_HSA
    return counts_HSAZ, paid.sum(0).double()


def value_of(log_pi_HSA: Tensor, p_HSAZ: Tensor, r_HSA: Tensor, prior_HSA: Tensor, lam: float) -> Tensor:
    """[H+1,S]: what a policy is worth with its divergence paid."""
    v_hS = torch.zeros(len(r_HSA) + 1, r_HSA.shape[1], dtype=torch.float64)
    for h in reversed(range(len(r_HSA))):
        q_SA = r_HSA[h] + p_HSAZ[h, :, :, :-1] @ v_hS[h + 1]
        v_hS[h] = (log_pi_HSA[h].exp() * q_SA).sum(1) - lam * divergence(log_pi_HSA[h], prior_HSA[h])
    return v_hS


@pytest.mark.parametrize("tries", (1, 5, 50))
@pytest.mark.parametrize("lam", (0.0, 0.02, 0.5))
def test_the_truth_lies_between_the_bounds(lam: float, tries: int) -> None:
    """V̄ ≥ V* ≥ V̲, and V̲ is a bound on what the planned policy really is worth."""
    for seed in range(10):
        p, r, prior = world(seed)
        counts, sums = counted(p, r, tries, seed)
        found = plan(counts, sums, prior, lam, count_bonus(counts.sum(3), 1.5))
        _, best_hS, _ = exact(p, r, prior, lam)
        own_hS = value_of(found.log_pi_HSA, p, r, prior, lam)
        assert bool((found.upper_hS >= best_hS - 1e-12).all())
        assert bool((own_hS >= found.lower_hS - 1e-12).all())
        assert bool((best_hS >= own_hS - 1e-12).all())


def test_bounds_close_in_with_tries() -> None:
    p, r, prior = world(0)
    widths = []
    for tries in (10, 1000, 100_000):
        counts, sums = counted(p, r, tries, 0)
        found = plan(counts, sums, prior, 0.1, count_bonus(counts.sum(3), 0.5))
        widths.append(float((found.upper_hS - found.lower_hS)[0].max()))
    assert widths[0] > widths[1] > widths[2] and widths[2] < 0.1


def test_what_was_never_tried_may_be_anything() -> None:
    _, r, prior = world(0)
    nothing = torch.zeros(4, 3, 3, 4, dtype=torch.int32)
    found = plan(nothing, torch.zeros_like(r), prior, 0.3, count_bonus(nothing.sum(3), 0.5), (-0.5, 2.0))
    for h in range(4):
        assert found.q_upper_HSA[h].unique().tolist() == [2.0 * (4 - h)]
        assert found.q_lower_HSA[h].unique().tolist() == [-0.5 * (4 - h)]
    torch.testing.assert_close(found.log_pi_HSA.exp(), prior)  # all alike: the prior decides


def test_a_high_price_is_the_prior_and_a_low_one_greed() -> None:
    p, r, prior = world(1)
    counts, sums = counted(p, r, 20, 1)
    bonus = count_bonus(counts.sum(3), 0.1)
    dear = plan(counts, sums, prior, 1e9, bonus)
    torch.testing.assert_close(dear.log_pi_HSA.exp(), prior, rtol=0, atol=1e-7)
    greedy = plan(counts, sums, prior, 0.0, bonus)
    cheap = plan(counts, sums, prior, 1e-9, bonus)
    torch.testing.assert_close(cheap.log_pi_HSA.exp(), greedy.log_pi_HSA.exp())
    assert torch.equal(greedy.log_pi_HSA.exp().argmax(2), greedy.q_upper_HSA.argmax(2))


@pytest.mark.parametrize("lam", (0.0, 0.1, 10.0, math.inf))
def test_what_the_prior_never_does_is_never_done(lam: float) -> None:
    prior = t([[0.0, 0.4, 0.6], [0.5, 0.5, 0.0]])
    v_S, log_pi_SA = regularised(t([[9.0, 1.0, 2.0], [1.0, 1.0, 9.0]]), prior, lam)
    pi_SA = log_pi_SA.exp()
    assert pi_SA[0, 0] == 0 and pi_SA[1, 2] == 0
    close(pi_SA.sum(1), [1.0, 1.0])
    close(pi_SA[1], [0.5, 0.5, 0.0])
    close(v_S[1], 1.0)
    if not math.isinf(lam):
        q_SA = t([[9.0, 1.0, 2.0], [1.0, 1.0, 9.0]])
        close((pi_SA * q_SA).sum(1) - lam * divergence(log_pi_SA, prior), v_S.tolist())


def test_leaving_the_prior_costs_what_the_rule_says() -> None:
    """λ = ε / (2 KL(best ‖ prior)): the regularised policy earns no less than the best one by more than ε / 2."""
    p, r, _ = world(2)
    uniform = torch.full((4, 3, 3), 1 / 3, dtype=torch.float64)
    _, best_hS, _ = exact(p, r, uniform, 0.0)
    epsilon, kl = 0.1, 4 * math.log(3)
    _, _, log_pi_HSA = exact(p, r, uniform, epsilon / (2 * kl))
    earned_hS = value_of(log_pi_HSA, p, r, uniform, 0.0)
    assert float((best_hS - earned_hS)[0].max()) <= epsilon / 2
