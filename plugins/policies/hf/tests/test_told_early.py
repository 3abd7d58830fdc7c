"""Whole groups told of while others are sampled: each once, as they are in the end, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlalign import Example, Rollout, Sampling
from rlalign.randomness import Seeds

K, STEPS = 2, 20
EXAMPLES = [Example(str(i), f"w{i} w{i + 1} w{i % 7}") for i in range(12)]
FIELDS = ("group_N", "actions_NT", "mask_NT", "finished_N", "logprobs_NT", "full_logprobs_NT")


def sampled(policy: Any, how: Sampling, told: list[Rollout] | None) -> Rollout:
    uniforms = Seeds(2).uniforms("told", positions=range(len(EXAMPLES)), samples=K, steps=STEPS)
    return policy.sample(EXAMPLES, how, uniforms, finished=told.append if told is not None else None)


@pytest.mark.parametrize("more", [{}, {"top_p": 0.9, "min_new_tokens": 3}, {"stop": ("w7", "w21")}])
@pytest.mark.parametrize("family", ("gpt2", "t5"))
def test_groups_are_told_of_early_and_nothing_else_moves(
    exact_policy_of: Callable[..., Any], family: str, more: dict[str, Any]
) -> None:
    policy, how = exact_policy_of(family), Sampling(samples=K, max_new_tokens=STEPS, temperature=3.0, **more)
    told: list[Rollout] = []
    whole, alone = sampled(policy, how, told), sampled(policy, how, None)
    for name in FIELDS:
        assert torch.equal(getattr(whole, name), getattr(alone, name)), name
    assert whole.texts == alone.texts
    assert len(told) > 1
    assert sorted(int(e.id) for part in told for e in part.examples) == list(range(len(EXAMPLES)))
    for part in told:
        rows = torch.cat([(whole.group_N == int(e.id)).nonzero()[:, 0] for e in part.examples])
        mine = whole.take(rows)
        order = part.row_order()
        assert mine.texts == tuple(part.texts[i] for i in order.tolist())
        for name in ("actions_NT", "logprobs_NT", "full_logprobs_NT"):
            ours, theirs = getattr(mine, name)[mine.mask_NT], getattr(part, name)[part.mask_NT]
            assert torch.equal(ours, theirs), name


def test_a_beam_search_tells_of_nothing(exact_policy_of: Callable[..., Any]) -> None:
    told: list[Rollout] = []
    sampled(exact_policy_of("gpt2"), Sampling(samples=K, beams=2, max_new_tokens=STEPS), told)
    assert told == []
