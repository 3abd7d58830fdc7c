"""What sampling reads is counted: each distinct prompt once, whatever the number of its responses and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlalign import Example, Sampling

K, STEPS = 5, 4
PROMPTS = ("w1 w2 w3", "w4 w5", "w1 w2 w3", "w6 w7 w8 w9 w10")
"""Three of them are distinct."""


class Looked(TorchFunctionMode):
    """Counts the tokens that are looked up in an embedding of the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.counts: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.embedding and len(args[1]) == self.vocabulary:
            self.counts.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_each_distinct_prompt_is_read_once(family: str, policy_of: Callable[..., Any]) -> None:
    policy = policy_of(family)
    policy.ends = ()
    examples = [Example(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
    uniforms: Tensor = torch.rand(len(PROMPTS), K, STEPS, generator=torch.Generator().manual_seed(0))
    longest = max(map(len, policy.prompts(examples)))
    policy.sample(examples, Sampling(samples=K, max_new_tokens=STEPS), uniforms)  # anything made but once
    with Looked(len(policy.network.get_input_embeddings().weight)) as looked:
        policy.sample(examples, Sampling(samples=K, max_new_tokens=STEPS), uniforms)
    rows = len(PROMPTS) * K
    first, *later = looked.counts
    assert first == 3 * longest
    if policy.kind != "causal":
        assert later.pop(0) <= rows * 2, "what a decoder begins with"
    assert later == [rows] * (STEPS - 1)
