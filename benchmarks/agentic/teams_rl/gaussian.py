"""The policy of the code that was released with TeaMs-RL, as an arm; and what a policy is worth in the toy, exactly.

Six numbers are drawn from a Gaussian whose means follow from the action before, and the largest of them is the action.
Its log-prob is taken as the density of the one-hot vector, which is not the probability that it was chosen with.
Legend: S states (none, or the action before), A actions, M steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from rlalign import Batch, Component, Learner, Run, hookimpl
from rlalign_plugin_teams_rl.players import ACTIONS
from rlalign_plugin_teams_rl.toy import chance
from rlalign_plugin_trpo.trpo import TRPO

A, STEPS = len(ACTIONS), 6
SHIFT = 0.3
"""Added to `breadth` before the largest is taken, while it learns."""
POINTS, WEIGHTS = (torch.from_numpy(x) for x in numpy.polynomial.hermite_e.hermegauss(64))


def largest(mean_SA: Tensor, deviation_A: Tensor) -> Tensor:
    """[S,A]: how likely each of independent Gaussian numbers is the largest, by quadrature."""
    weights_P = WEIGHTS / math.sqrt(2 * math.pi)
    found = []
    for a in range(mean_SA.shape[1]):
        drawn_SP = mean_SA[:, a, None] + deviation_A[a] * POINTS
        below_SPA = (drawn_SP[..., None] - mean_SA[:, None]) / deviation_A
        others = [b for b in range(mean_SA.shape[1]) if b != a]
        below_SP = torch.special.ndtr(below_SPA[..., others]).prod(-1)
        found.append(below_SP @ weights_P)
    found_SA = torch.stack(found, 1).clamp_min(1e-12)
    return found_SA / found_SA.sum(1, keepdim=True)


class Gaussian(TRPO):
    """TRPO on the density of the one-hot. The table holds how likely each number is the largest, and samples that."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.mean_SA = torch.zeros(A + 1, A, dtype=torch.float64)
        self.log_deviation_A = torch.zeros(A, dtype=torch.float64)

    def _natural_step(self, run: Run, learner: Learner, batch: Batch) -> dict[str, float]:
        c, rollout = self.config, batch.rollout
        state_M, action_M = run.models.policy.states_of(rollout), rollout.actions_NT[rollout.mask_NT]
        advantage_M = batch.advantage_NT[rollout.mask_NT].double()
        one_hot_MA = torch.nn.functional.one_hot(action_M, A).double()
        share_S1 = torch.bincount(state_M, minlength=A + 1)[:, None].double() / len(state_M)
        variance_A = (2 * self.log_deviation_A).exp()
        off_MA = one_hot_MA - self.mean_SA[state_M]
        mean_slope_SA = torch.zeros_like(self.mean_SA).index_add(
            0, state_M, advantage_M[:, None] * off_MA / variance_A / len(state_M)
        )
        deviation_slope_A = (advantage_M[:, None] * (off_MA**2 / variance_A - 1)).mean(0)
        # The Fisher matrix of a Gaussian is diagonal.
        mean_step_SA = mean_slope_SA / (share_S1 / variance_A + c.damping)
        deviation_step_A = deviation_slope_A / (2 + c.damping)
        curvature = float((mean_step_SA * mean_slope_SA).sum() + (deviation_step_A * deviation_slope_A).sum())
        before = self.mean_SA, self.log_deviation_A
        old_M = self._density(one_hot_MA, state_M)
        for i in range(c.tries if curvature > 0 else 0):
            length = c.shrink**i * math.sqrt(2 * c.delta / curvature)
            self.mean_SA = before[0] + length * mean_step_SA
            self.log_deviation_A = before[1] + length * deviation_step_A
            gain = float(
                ((self._density(one_hot_MA, state_M) - old_M).exp() * advantage_M - advantage_M).mean()
            )
            if float((share_S1 * self._kl(*before)).sum()) < c.delta and gain > 0:
                break
        else:
            self.mean_SA, self.log_deviation_A = before
        mean_SA = self.mean_SA.clone()
        mean_SA[:, 0] += SHIFT
        parameters = learner.parameters().clone()
        learner.split(parameters)["policy/table"].copy_(largest(mean_SA, self.log_deviation_A.exp()).log())
        learner.assign(parameters)
        return {}

    def _density(self, one_hot_MA: Tensor, state_M: Tensor) -> Tensor:
        """[M]: the log-density, but for a constant."""
        off_MA = (one_hot_MA - self.mean_SA[state_M]) / self.log_deviation_A.exp()
        return (-0.5 * off_MA**2 - self.log_deviation_A).sum(1)

    def _kl(self, mean_SA: Tensor, log_deviation_A: Tensor) -> Tensor:
        """[S,A]: of these Gaussians to the present ones."""
        moved_SA = (2 * log_deviation_A).exp() + (mean_SA - self.mean_SA) ** 2
        return (
            self.log_deviation_A - log_deviation_A + moved_SA / (2 * (2 * self.log_deviation_A).exp()) - 0.5
        )

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean_SA, "log_deviation": self.log_deviation_A}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean_SA, self.log_deviation_A = state["mean"].clone(), state["log_deviation"].clone()


class Expected(Component):
    """What the policy earns in the toy game in six steps, by recursion: no episode is drawn."""

    @hookimpl
    def evaluate(self, run: Run) -> Mapping[str, float]:
        return {"reward": worth(run.models.policy.table.detach().softmax(1).tolist())}


def worth(probabilities: list[list[float]]) -> float:
    """The expected reward of a policy over [none or the action before][action]."""
    value = [0.0] * (A + 1)
    for _ in range(STEPS):
        value = [
            sum(
                p * (chance(ACTIONS[last - 1] if last else None, action) + value[a + 1])
                for a, (action, p) in enumerate(zip(ACTIONS, row, strict=True))
            )
            for last, row in enumerate(probabilities)
        ]
    return value[0]


components = {"gaussian": Gaussian, "expected": Expected}
