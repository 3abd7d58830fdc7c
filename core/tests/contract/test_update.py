"""`update` belongs to a component: a gradient step with a line search, and an evolution strategy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from rlalign import Batch, Component, Learner, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from rlalign.testing.kit import ComponentTests

from .conftest import Runs, component, metrics
from .methods import same


class LineSearch(Component):
    """A step along the gradient, halved until the surrogate improves."""

    class Config(Options):
        """Options of `line-search`."""

        length: float = Field(2.0, description="the longest step, in parameters")

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
        start, before, gradient = learner.parameters(), learner.loss(batch), learner.gradient(batch)
        step = -gradient * self.config.length / gradient.norm()
        for halvings in range(10):
            learner.assign(start + step / 2**halvings)
            after = learner.loss(batch)
            if after < before:
                return {"line-search/gain": before - after, "line-search/halvings": halvings}
        learner.assign(start)
        return {"line-search/gain": 0.0, "line-search/halvings": 10}


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


METHODS = {"line-search": LineSearch, "es": EvolutionStrategy}
PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 12, "prompts": 3}},
    "policy": {
        "logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 6, "hidden": 8, "scale": 0.3}
    },
    "rewards": ["token-sum"],
    "algorithm": "line-search",
    "generation": {"samples": 8, "max_new_tokens": 4},
    "train": {"iterations": 15, "prompts": 12, "dtype": "float64"},
}


def test_a_line_search_learns(runs: Runs) -> None:
    lines = metrics(runs(PIPELINE, **METHODS))
    assert lines[-1]["reward/token-sum"] > lines[0]["reward/token-sum"] + 0.3
    assert all(line["line-search/gain"] >= 0 for line in lines)


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
    class Trials(LineSearch):
        @hookimpl
        def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
            texts = [learner.respond(batch.rollout.examples)[0].texts for _ in range(2)]
            learner.loss(batch)
            left = sum(p.grad is not None for p in run.models.policy.parameters())
            return {"same": float(texts[0] == texts[1]), "left": float(left)}

    pipeline = {**PIPELINE, "train": {**PIPELINE["train"], "iterations": 2}}
    for line in metrics(runs(pipeline, **{"line-search": Trials})):
        assert line["same"] == 0
        assert line["left"] == 0


def test_weights_that_no_update_touched_stay(runs: Runs) -> None:
    class Idle(LineSearch):
        @hookimpl
        def update(self) -> Mapping[str, float]:
            return {}

    session = runs({**PIPELINE, "algorithm": ["line-search", "watch"]}, **{"line-search": Idle})
    watch = component(session, "watch")
    assert same(watch.started[0]["policy"], watch.done[-1]["policy"])


def test_a_component_may_end_the_phase(runs: Runs) -> None:
    class Enough(LineSearch):
        @hookimpl
        def iteration_done(self, run: Run, metrics: Mapping[str, float]) -> None:
            if metrics["reward/token-sum"] > 0.6:
                run.finish_phase("good enough")

    session = runs({**PIPELINE, "algorithm": "line-search"}, **{"line-search": Enough})
    lines = metrics(session)
    assert 1 < len(lines) < 15
    assert [line["reward/token-sum"] > 0.6 for line in lines] == [False] * (len(lines) - 1) + [True]


class TestLineSearch(ComponentTests):
    component = LineSearch


class TestEvolutionStrategy(ComponentTests):
    component = EvolutionStrategy
    options = {"pairs": 2}
