"""The engine's routes over language models: the gradients of one plain graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Batch, Component, Loss, Outputs, hookimpl
from rlalign.testing import Bench, ComponentTests, plain_gradient
from rlalign_plugin_trpo import fisher_product

Pipeline = Callable[..., dict[str, Any]]


class ActorCritic(Component):
    """A loss of everything a loss can read, over groups."""

    trains = ("policy", "value")
    needs = ("logprobs", "full_logprobs", "entropy", "values")
    unit = "group"
    responses = "sampled"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        total_N = batch.sum_over_chosen(
            now.logprobs_NT * (batch.advantage_NT + 0.3) + 0.1 * now.full_logprobs_NT**2
        )
        rows_GK, real_GK = batch.rollout.groups()
        spread_G = torch.where(real_GK, total_N[rows_GK], 0.0).sum(1) ** 2
        critic = batch.mean_over_tokens((now.values_NT - batch.advantage_NT - 0.5) ** 2)
        bonus = batch.mean_over_tokens(now.entropy_NT)
        value = 0.01 * batch.mean_over_groups(spread_G) + critic - 0.1 * bonus
        return Loss(value, {"entropy": bonus})


class ActorOnly(ActorCritic):
    """The same without a value."""

    trains = ("policy",)
    needs = ("logprobs", "full_logprobs", "entropy")

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        total_N = batch.sum_over_chosen(
            now.logprobs_NT * (batch.advantage_NT + 0.3) + 0.1 * now.full_logprobs_NT**2
        )
        return Loss(batch.mean_over_responses(total_N) - 0.1 * batch.mean_over_tokens(now.entropy_NT))


EXTRA = {"actor-critic": ActorCritic, "actor-only": ActorOnly}
GENERATION = {"samples": 3, "max_new_tokens": 7, "temperature": 0.8, "top_k": 40, "min_new_tokens": 2}


def started(
    tmp_path: Path, pipeline: dict[str, Any], components: Mapping[str, type[Any]], dtype: str = "float64"
) -> Bench:
    pipeline = {**pipeline, "generation": GENERATION}
    pipeline["train"] = {**pipeline["train"], "dtype": dtype}
    bench = Bench(tmp_path, pipeline, {**components, **EXTRA})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in bench.engine.policy("policy").named_parameters():
            if ".lora_B." in key:  # zero at first, which would hide half of the gradient
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        if "value" in bench.engine.models:
            for key, parameter in bench.engine.models["value"].named_parameters():
                if key == "weight" or "lora_B" in key:
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return bench


VALUES: dict[str, dict[str, Any]] = {
    "shared": {"trunk": "policy"},
    "own": {"trunk": "own"},
    "per-prompt": {"trunk": "policy", "per_prompt": True},
    "own-per-prompt": {"trunk": "own", "per_prompt": True},
}
CHOSEN = [pytest.param(v, marks=[pytest.mark.slow] if "per-prompt" in v else []) for v in VALUES]


@pytest.mark.parametrize("lora", (None, {"r": 3}), ids=("full", "lora"))
@pytest.mark.parametrize("family", ("gpt2", "bart"))
def test_routes_give_the_plain_gradient(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any
) -> None:
    """In float64 to 1e-12."""
    pipeline = pipeline_of(family, {"lora": lora}, algorithm="actor-only")
    bench = started(tmp_path, pipeline, components)
    batch = bench.batch()
    ComponentTests().check_routes(bench, batch)
    _, gradients = plain_gradient(bench, batch)
    assert len(gradients) > 20
    moved = [name for name, gradient in gradients.items() if bool(gradient.any())]
    assert all((".lora_" in name) == (lora is not None) for name in moved)


@pytest.mark.parametrize("value", CHOSEN)
@pytest.mark.parametrize("lora", (None, {"r": 3}), ids=("full", "lora"))
@pytest.mark.parametrize("family", ("gpt2", "bart"))
def test_routes_with_a_value(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any, value: str
) -> None:
    pipeline = pipeline_of(
        family, {"lora": lora}, algorithm="actor-critic", models={"value": {"value-head": VALUES[value]}}
    )
    bench = started(tmp_path, pipeline, components)
    batch = bench.batch()
    ComponentTests().check_routes(bench, batch)
    _, gradients = plain_gradient(bench, batch)
    assert bool(gradients["value/weight"].any())
    body = [name for name in gradients if name.startswith("value/body") and bool(gradients[name].any())]
    assert bool(body) == value.startswith("own")


@pytest.mark.parametrize("lora", (None, {"r": 3}), ids=("full", "lora"))
@pytest.mark.parametrize("family", ("llama", "t5"))
def test_routes_of_models_with_float32_norms(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, exactly: None, family: str, lora: Any
) -> None:
    bench = started(tmp_path, pipeline_of(family, {"lora": lora}, algorithm="actor-critic"), components)
    ComponentTests().check_routes(bench, bench.batch())


@pytest.mark.parametrize("family", ("gpt2", "t5"))
def test_fisher_product_needs_eager_attention(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, exactly: None, family: str
) -> None:
    """Forward mode and reverse mode through the whole model: F·v is v·F."""
    pipeline = pipeline_of(family, {"attention": "eager"}, algorithm="actor-only")
    bench = started(tmp_path, pipeline, components)
    batch = bench.batch()
    run, learner = bench.run, bench.learner
    size = len(learner.parameters())
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    one, other = fisher_product(run, learner, batch, u) @ v, fisher_product(run, learner, batch, v) @ u
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert float(fisher_product(run, learner, batch, u) @ u) > 0
