"""Which methods climb the objective, and where others rest: on a bandit, by enumeration of all that can be pulled.

Every group of arms is an example, scored and learned from as in a run: component, rewards and engine, in float64.
The policy, softmax of a row of logits, is asked for the gradient on each group, weighted by how likely the group is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bandit.bandit import OffPolicyPG

from rlalign import Example, Options, Task
from rlalign.testing import Bench
from rlalign_plugin_table import Table

R = (2.5, 2.0, 1.0)
BETA = 0.5
REFERENCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
"""Where the gradient is asked for, unless a test says otherwise."""
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)
MU = torch.tensor([[0.1, 0.2, 0.7], [0.05, 0.05, 0.9]], dtype=torch.float64)
"""Who wrote the logs: y by the first row, y' by the second."""
OPTIMUM = (0.7053845126982412, 0.25949646034241913, 0.03511902695933973)
"""π* ∝ π_ref exp(R/β) of a uniform reference."""

Probability = Callable[[Sequence[int]], float]


class Groups(Task):
    """Every way to pull `k` arms, one after the other; with `preferred`, a pair stands there in both orders of rank."""

    class Config(Options):
        """Options of `groups`."""

        k: int = Field(2, gt=0, description="arms pulled")
        preferred: bool = Field(False, description="scores say which was preferred; otherwise what arms pay")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        ranks = ((1.0, 0.0), (0.0, 1.0)) if self.config.preferred else (None,)
        return [
            Example(
                id=" ".join(map(str, arms)) if rank is None else f"{arms[0]} {arms[1]} {rank[0]:.0f}",
                prompt="",
                responses=tuple(map(str, arms)),
                scores=tuple(R[arm] for arm in arms) if rank is None else rank,
                meta={"payouts": list(R)},
            )
            for arms in itertools.product(range(3), repeat=self.config.k)
            for rank in ranks
        ]


COMPONENTS = {"groups": Groups, "off-policy-pg": OffPolicyPG}


class Enumerated:
    """An algorithm, shown every group."""

    def __init__(
        self, folder: Path, algorithm: Any, task: Any, *, rewards: Any = None, reference: Tensor | None = None
    ) -> None:
        pipeline = {"task": {"groups": task}, "policy": {"table": {"actions": 3}}, "algorithm": algorithm}
        pipeline |= {"responses": "logged", "train": {"iterations": 1, "dtype": "float64", "prompts": 64}}
        self.bench = Bench(folder, pipeline | ({"rewards": rewards} if rewards else {}), COMPONENTS)
        if reference is not None:
            self._become("reference", reference)

    def _become(self, model: str, probabilities: Tensor) -> None:
        table = self.bench.phase.models[model]
        assert isinstance(table, Table)
        with torch.no_grad():
            table.table.copy_(probabilities.log()[None])
        table.version += 1

    def climbed(self, policy: Tensor, probability: Probability) -> Tensor:
        """[A]: what is climbed in expectation, −∇loss by the logits of `policy`, each group a step of its own."""
        self._become("policy", policy)
        bench, total = self.bench, torch.zeros(3, dtype=torch.float64)
        batch = bench.batch(len(bench.phase.draw.data))
        for g, example in enumerate(batch.rollout.examples):
            step = batch.take(batch.rollout.group_N == g).as_step()
            weight = probability([int(word) for word in example.id.split()])
            total -= weight * bench.gradient(step)[1]["policy/table"][0]
        return total


def of_policy(policy: Tensor) -> Probability:
    """Each arm pulled by the policy."""
    return lambda arms: float(policy[list(arms)].prod())


def of_log(arms: Sequence[int]) -> float:
    """A pair as it stands in the log."""
    return float(MU[0, arms[0]] * MU[1, arms[1]])


def of_ranked_log(said: Sequence[int]) -> float:
    """The same with its rank: y is preferred with probability σ(R(y) − R(y'))."""
    y, other, first = said
    better = 1 / (1 + torch.tensor(R[other] - R[y]).double().exp())
    return of_log((y, other)) * float(better if first else 1 - better)


def truth(policy: Tensor, reference: Tensor) -> Tensor:
    """∇J, J = E[R] − β KL(π‖π_ref), by autograd."""
    logits = policy.log().requires_grad_()
    logp = logits.log_softmax(0)
    objective = logp.exp() @ (torch.tensor(R, dtype=torch.float64) - BETA * (logp - reference.log()))
    (found,) = torch.autograd.grad(objective, logits)
    return found


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


PENALISED = [{"logged": {}}, {"kl": {"coef": BETA}}]


@pytest.mark.parametrize(
    ("algorithm", "k"), [("reinforce", 1), ("rloo", 2), ("rloo", 3), ("copg", 2), ("copg", 3)]
)
def test_on_its_own_samples_the_expected_gradient_is_that_of_the_objective(algorithm, k, tmp_path):
    """RLOO and REINFORCE have the KL in a reward, CoPG within the loss: the same objective."""
    own = algorithm == "copg"
    said = {algorithm: {"beta": BETA} if own else {}}
    shown = Enumerated(tmp_path, said, {"k": k}, rewards=None if own else PENALISED, reference=REFERENCE)
    if algorithm == "reinforce":  # a baseline from a past
        (component,) = [c for c in shown.bench.phase.plan.components if c.name == algorithm]
        component.load_state_dict({"count": 4, "total": 7.0})
    found = shown.climbed(POLICY, of_policy(POLICY))
    torch.testing.assert_close(found, truth(POLICY, REFERENCE), atol=1e-12, rtol=0)


def on_own_samples(folder: Path, algorithm: Any, k: int) -> Tensor:
    """What is climbed for what arms pay, without any KL."""
    return Enumerated(folder, algorithm, {"k": k}).climbed(POLICY, of_policy(POLICY))


def test_dr_grpo_climbs_as_it_should_and_grpo_with_its_deviation_does_not(tmp_path):
    pays, k = torch.tensor(R, dtype=torch.float64), 3
    true = POLICY * (pays - POLICY @ pays)
    # The group's own mean as baseline costs a k-th of the gradient; the sum is divided by the most tokens there may be.
    dr_grpo = on_own_samples(tmp_path / "dr", {"dr-grpo": {}}, k)
    torch.testing.assert_close(dr_grpo, true * (k - 1) / k / 64, atol=1e-12, rtol=0)
    # Of two, the better one has the advantage ½√2 and the other minus that, by however much it is better.
    wins = torch.stack([POLICY[pays < pay].sum() - POLICY[pays > pay].sum() for pay in pays])
    grpo = on_own_samples(tmp_path / "grpo", {"grpo": {"kl": 0.0}}, 2)
    torch.testing.assert_close(grpo, POLICY * wins * 0.5**0.5, atol=1e-4, rtol=0)
    assert cosine(grpo, true) == pytest.approx(0.954, abs=1e-3)


@pytest.mark.parametrize("pair", [of_policy(POLICY), of_log])
def test_rloo_with_todays_kl_is_copg_on_any_pairs(pair, tmp_path):
    """At the first step of an iteration; afterwards its reward has the KL of the policy that began it."""
    copg = Enumerated(tmp_path / "copg", {"copg": {"beta": BETA}}, {}, reference=REFERENCE)
    rloo = Enumerated(tmp_path / "rloo", "rloo", {}, rewards=PENALISED, reference=REFERENCE)
    found = [one.climbed(POLICY, pair) for one in (copg, rloo)]
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)
    assert found[0].norm() > 0.01


def test_at_the_optimum_copg_wants_nothing_of_any_pair(tmp_path):
    copg = Enumerated(tmp_path, {"copg": {"beta": BETA}}, {}, reference=UNIFORM)
    best = torch.tensor(OPTIMUM, dtype=torch.float64)
    for pair in itertools.product(range(3), repeat=2):
        alone = copg.climbed(best, lambda arms, pair=pair: float(tuple(arms) == pair))
        assert alone.abs().max() < 1e-12, pair
        elsewhere = copg.climbed(POLICY, lambda arms, pair=pair: float(tuple(arms) == pair))
        assert (elsewhere.abs().max() > 0.01) == (pair[0] != pair[1])


OFF_POLICY = [
    ("copg", {"copg": {"beta": BETA}}, OPTIMUM),
    (
        "ipo",
        {"ipo": {"tau": BETA, "average": False}},
        (0.4241690588508854, 0.3527058336606691, 0.2231251074884454),
    ),
    ("pg", {"off-policy-pg": {"beta": BETA}}, (0.1939902582774074, 0.2501385901689515, 0.5558711515536411)),
    (
        "pg-value",
        {"off-policy-pg": {"beta": BETA, "baseline": "value"}},
        (0.811548183606536, 0.1675247521858652, 0.0209270642075988),
    ),
    ("pg-regularised", {"off-policy-pg": {"beta": BETA, "baseline": "regularised"}}, OPTIMUM),
]


@pytest.mark.parametrize(("name", "algorithm", "stated"), OFF_POLICY, ids=[name for name, *_ in OFF_POLICY])
def test_on_a_skewed_log_a_method_rests_where_it_is_stated_and_nowhere_near(
    name, algorithm, stated, tmp_path
):
    """IPO sees who was preferred with probability σ(R(y) − R(y')); the naive gradient takes the log for its own."""
    ranked = name == "ipo"
    shown = Enumerated(tmp_path, algorithm, {"preferred": ranked}, reference=UNIFORM)
    likely = of_ranked_log if ranked else of_log
    end, best = (torch.tensor(x, dtype=torch.float64) for x in (stated, OPTIMUM))
    assert shown.climbed(end, likely).abs().max() < 1e-12
    biased = stated != OPTIMUM
    assert ((end - best).abs().sum() / 2 > 0.03) == biased
    assert (shown.climbed(best, likely).abs().max() > 1e-3) == biased
    for arm in range(3):  # a step away from where it rests it climbs back
        away = (end.log() + 0.05 * torch.eye(3, dtype=torch.float64)[arm]).softmax(0)
        assert shown.climbed(away, likely) @ (end.log() - away.log()) > 0
