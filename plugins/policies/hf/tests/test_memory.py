"""What a policy says of the memory that it takes, beside what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Example, Sampling

FAMILIES = ("gpt2", "llama", "t5", "bart", "bert2bert")


def kept_for_backward(policy: Any, rollout: Any) -> int:
    """Bytes that a pass through the trunk leaves behind, its weights apart."""
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # or its place would be another's
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.features(rollout).sum()
    return sum(kept.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", ({}, {"lora": {"r": 4}}), ids=("full", "lora"))
def test_it_is_about_what_is_kept(
    policy_of: Callable[..., Any], family: str, lora: Mapping[str, Any]
) -> None:
    """Not less, or the memory runs out; nor so much more that micro-batches are far too small."""
    policy = policy_of(family, **lora)
    said = policy.footprint()
    if not lora:
        assert said.weights == said.learned == sum(4 * p.numel() for p in policy.network.parameters())
    else:
        adapters = sum(4 * p.numel() for name, p in policy.network.named_parameters() if ".lora_" in name)
        assert adapters <= said.learned <= 2 * adapters
    examples = [Example(str(i), "w1 w2 w3 w4 w5 w6 w7") for i in range(8)]
    how = Sampling(max_new_tokens=8, min_new_tokens=8)
    rollout = policy.sample(examples, how, torch.rand(8, 1, 8))
    most = 20 if family == "t5" else 4  # T5 keeps a number for each pair of tokens: it is taken for long rows
    tokens = int(rollout.cost_N.max()) * len(rollout)
    assert 1 <= said.token * tokens / kept_for_backward(policy, rollout) <= most


@pytest.mark.parametrize("family", ("gpt2", "llama"))
def test_what_layers_leave_that_are_computed_again(policy_of: Callable[..., Any], family: str) -> None:
    """Not less than is kept then, and less than else."""
    policy = policy_of(family)
    said, shape = policy.footprint(), policy.shape()
    assert said.again == shape.recomputed + said.token // shape.layers
    examples = [Example(str(i), "w1 w2 w3 w4 w5 w6 w7") for i in range(8)]
    how = Sampling(max_new_tokens=8, min_new_tokens=8)
    rollout = policy.sample(examples, how, torch.rand(8, 1, 8))
    tokens = int(rollout.cost_N.max()) * len(rollout)
    policy.recomputes = True
    kept = kept_for_backward(policy, rollout)
    assert kept <= said.again * tokens < said.token * tokens
