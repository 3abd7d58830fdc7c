"""`update` belongs to a component: TRPO's natural gradient with a line search, and an evolution strategy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Learner, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from rlalign.testing.kit import ComponentTests

from .conftest import Runs, component, metrics
from .methods import same


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """x with A x ≈ b, from products A·v."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = b.clone(), b @ b
    for _ in range(steps):
        if squared < 1e-24:
            break
        a = product(direction)
        alpha = squared / (direction @ a)
        x, residual = x + alpha * direction, residual - alpha * a
        direction, squared = residual + (residual @ residual) / squared * direction, residual @ residual
    return x


class TRPO(Component):
    """Schulman et al. (2015): the natural step of KL δ, halved until the surrogate improves within δ."""

    class Config(Options):
        """Options of `trpo`."""

        delta: float = Field(0.02, description="δ: the KL of a step")
        damping: float = Field(1e-4, description="added to the Fisher matrix")
        iterations: int = Field(20, description="steps of conjugate gradient")

    config: Config
    needs = ("logprobs", "old_logprobs")
    trains = ("policy",)
    unit = "response"
    responses = "sampled"

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        total_N = reward.total_N
        return Batch.of(rollout, reward, (total_N - total_N.mean()) / (total_N.std() + 1e-8))

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(
            -batch.mean_over_tokens((now.logprobs_NT - batch.old_logprobs_NT).exp() * batch.advantage_NT)
        )

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
        c, start, before = self.config, learner.parameters(), learner.loss(batch)
        gradient = learner.gradient(batch)

        def product(v: Tensor) -> Tensor:
            return learner.fisher_product(batch, v) + c.damping * v

        direction = conjugate_gradient(product, -gradient, c.iterations)
        self.last = start, gradient, direction
        step = direction * math.sqrt(2 * c.delta / float(direction @ product(direction)))
        for halvings in range(10):
            learner.assign(start + step / 2**halvings)
            after, kl = learner.loss(batch), learner.kl(batch, start)
            if after < before and kl <= 1.5 * c.delta:
                return {"trpo/kl": kl, "trpo/gain": before - after, "trpo/halvings": halvings}
        learner.assign(start)
        return {"trpo/kl": 0.0, "trpo/gain": 0.0, "trpo/halvings": 10}


class EvolutionStrategy(Component):
    """Salimans et al. (2017): a step along Σ (R₊ − R₋) ε, with mirrored perturbations."""

    class Config(Options):
        """Options of `es`."""

        sigma: float = Field(0.3, description="σ of the perturbations")
        pairs: int = Field(16, description="mirrored pairs a step")
        rate: float = Field(0.3, description="learning rate")

    config: Config
    trains = ("policy",)
    responses = "sampled"

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
        c, start = self.config, learner.parameters()
        step = torch.zeros_like(start)
        for i in range(c.pairs):
            noise = torch.randn(len(start), generator=run.rng("es", run.iteration, i), dtype=start.dtype)
            earned = []
            for sign in (1, -1):
                learner.assign(start + sign * c.sigma * noise)
                _, reward = learner.respond(batch.rollout.examples)
                earned.append(float(reward.total_N.mean()))
            step += (earned[0] - earned[1]) * noise / (2 * c.sigma * c.pairs)
        learner.assign(start + c.rate * step)
        return {"es/step": float(step.norm())}


METHODS = {"trpo": TRPO, "es": EvolutionStrategy}
PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 12, "prompts": 3}},
    "policy": {
        "logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 6, "hidden": 8, "scale": 0.3}
    },
    "rewards": ["token-sum"],
    "algorithm": "trpo",
    "generation": {"samples": 8, "max_new_tokens": 4},
    "train": {"iterations": 15, "prompts": 12, "dtype": "float64"},
}


def test_trpo_learns_within_its_region(runs: Runs) -> None:
    lines = metrics(runs(PIPELINE, **METHODS))
    assert lines[-1]["reward/token-sum"] > lines[0]["reward/token-sum"] + 0.3
    assert all(0.25 * 0.02 < line["trpo/kl"] <= 1.5 * 0.02 for line in lines)
    assert all(line["trpo/gain"] > 0 for line in lines)


def test_trpos_direction_is_the_natural_gradient(runs: Runs) -> None:
    """On a bandit F = diag p − pp', and the advantage's weighted score is the gradient."""
    bandit = {
        **PIPELINE,
        "policy": {"logits": {"prompts": 1, "responses": 1, "steps": 1, "vocabulary": 5, "ending": False}},
        "task": {"numbers": {"size": 1, "prompts": 1}},
        "algorithm": [{"trpo": {"damping": 1e-3}}, "watch"],
        "generation": {"samples": 200, "temperature": 0.7},
        "train": {**PIPELINE["train"], "iterations": 1, "prompts": 1},
    }
    session = runs(bandit, **METHODS)
    start, gradient, direction = component(session, "trpo").last
    (batch,) = component(session, "watch").batches
    logits = start.view(2, 5)[0]  # the other row belongs to the state after the last step
    p = (logits / 0.7).softmax(0)
    fisher = (p.diag() - p[:, None] * p) / 0.7**2 + 1e-3 * torch.eye(5, dtype=p.dtype)
    one_hot = torch.nn.functional.one_hot(batch.rollout.actions_NT[:, 0], 5).double()
    g = -(batch.advantage_NT * (one_hot - p)).mean(0) / 0.7
    assert torch.equal(start.view(2, 5), component(session, "watch").started[0]["policy"]["free"][0])
    torch.testing.assert_close(gradient.view(2, 5)[0], g, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(direction.view(2, 5)[0], torch.linalg.solve(fisher, -g), rtol=1e-9, atol=1e-12)
    assert not direction.view(2, 5)[1].any()


def test_an_evolution_strategy_learns_without_a_gradient(runs: Runs, calls: Counter[str]) -> None:
    small = {
        "task": {"numbers": {"size": 12, "prompts": 1}},
        "policy": {"logits": {"prompts": 1, "responses": 1, "steps": 4, "vocabulary": 6, "scale": 0.3}},
        "train": {**PIPELINE["train"], "iterations": 8},
    }
    lines = metrics(runs({**PIPELINE, **small, "algorithm": {"es": {"sigma": 0.5, "rate": 3.0}}}, **METHODS))
    assert lines[-1]["reward/token-sum"] > lines[0]["reward/token-sum"] + 0.3
    assert calls == {"sample": 8 * (1 + 2 * 16)}


def test_a_trial_has_uniforms_of_its_own_and_a_loss_leaves_nothing(runs: Runs) -> None:
    class Trials(TRPO):
        @hookimpl
        def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
            texts = [learner.respond(batch.rollout.examples)[0].texts for _ in range(2)]
            learner.loss(batch)
            left = sum(p.grad is not None for p in run.models.policy.parameters())
            return {"same": float(texts[0] == texts[1]), "left": float(left)}

    pipeline = {**PIPELINE, "train": {**PIPELINE["train"], "iterations": 2}}
    for line in metrics(runs(pipeline, trpo=Trials)):
        assert line["same"] == 0
        assert line["left"] == 0


def test_weights_that_no_update_touched_stay(runs: Runs) -> None:
    class Idle(TRPO):
        @hookimpl
        def update(self) -> Mapping[str, float]:
            return {}

    session = runs({**PIPELINE, "algorithm": ["trpo", "watch"]}, trpo=Idle)
    watch = component(session, "watch")
    assert same(watch.started[0]["policy"], watch.done[-1]["policy"])


def test_a_component_may_end_the_phase(runs: Runs) -> None:
    class Enough(TRPO):
        @hookimpl
        def iteration_done(self, run: Run, metrics: Mapping[str, float]) -> None:
            if metrics["reward/token-sum"] > 0.6:
                run.finish_phase("good enough")

    session = runs({**PIPELINE, "algorithm": "trpo"}, trpo=Enough)
    lines = metrics(session)
    assert 1 < len(lines) < 15
    assert [line["reward/token-sum"] > 0.6 for line in lines] == [False] * (len(lines) - 1) + [True]


class TestTRPO(ComponentTests):
    component = TRPO


class TestEvolutionStrategy(ComponentTests):
    component = EvolutionStrategy
    options = {"pairs": 2}
