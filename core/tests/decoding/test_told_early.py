"""Whole groups told of while others are sampled: each once, as they are in the end, and nothing else moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Policy
from rlalign.builtin.nucleus import Nucleus
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.decoding import sampler
from rlalign.errors import RLAlignError
from rlalign.randomness import Seeds
from rlalign.testing import Bytes, Logits

GROUPS, K, STEPS = 20, 3, 24
SETTINGS = {
    "plain": {},
    "greedy": {"greedy": True},
    "narrowed": {"top_p": 0.8, "top_k": 40, "temperature": 0.9},
    "at least": {"min_new_tokens": 4},
    "stop strings": {"stop": ("1", "e")},
}


def logits() -> Policy:
    policy = Logits(Logits.Config(prompts=GROUPS, responses=K, steps=STEPS, vocabulary=6, seed=3))
    policy.setup()
    return policy


def letters() -> Policy:
    policy = Bytes(Bytes.Config())
    policy.setup()
    with torch.no_grad():
        policy.table[:, 256] += 3
    return policy


POLICIES = {"logits": logits, "bytes": letters}


def sampled(policy: Policy, how: Sampling, told: list[Rollout] | None, **loop: Any) -> Rollout:
    examples = [Example(str(i), str(i)) for i in range(GROUPS)]
    uniforms = Seeds(1).uniforms("told", positions=range(GROUPS), samples=K, steps=how.max_new_tokens)
    if loop:
        return sampler.sample(policy, examples, how, uniforms, finished=told.append, **loop)
    return policy.sample(examples, how, uniforms, finished=told.append if told is not None else None)


def check(whole: Rollout, alone: Rollout, told: Sequence[Rollout]) -> None:
    """What was sampled is what is sampled without anybody to tell, and the parts are made of it, to the bit."""
    for field in fields(Rollout):
        one, other = getattr(whole, field.name), getattr(alone, field.name)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), field.name
        elif field.name not in ("examples", "inputs", "columns", "allowed"):
            assert one == other, field.name
    same_allowed(whole, alone)
    told_ids = [example.id for part in told for example in part.examples]
    assert sorted(told_ids, key=int) == [str(i) for i in range(GROUPS)], "each group once"
    for part in told:
        assert part.flaw() is None
        places = [int(example.id) for example in part.examples]
        rows = torch.cat([(whole.group_N == g).nonzero()[:, 0] for g in places])
        mine, steps = whole.take(rows), part.steps
        order = part.row_order()
        assert part.group_N.tolist() == sorted(part.group_N.tolist())
        for name in ("actions_NT", "mask_NT", "logprobs_NT", "full_logprobs_NT"):
            ours, theirs = getattr(mine, name)[:, :steps], getattr(part, name)[order]
            assert torch.equal(ours[mine.mask_NT[:, :steps]], theirs[part.mask_NT]), name
        assert int(mine.length_N.max()) <= steps
        assert torch.equal(mine.finished_N, part.finished_N)
        assert (mine.texts, mine.settings) == (part.texts, part.settings)
        same_allowed(mine, part)
        for name, column in mine.columns.items():
            assert torch.equal(column, part.columns[name])


def same_allowed(one: Rollout, other: Rollout) -> None:
    rows = [getattr(x.allowed, "rows", None) or [None] * len(x) for x in (one, other)]
    for a, b in zip(*rows, strict=True):
        assert (a is None) == (b is None)
        for mine, theirs in zip(vars(a).values(), vars(b).values(), strict=True) if a else ():
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", POLICIES)
def test_groups_are_told_of_early_and_nothing_else_moves(name: str, setting: str) -> None:
    policy, how = POLICIES[name](), Sampling(samples=K, max_new_tokens=STEPS, **SETTINGS[setting])
    told: list[Rollout] = []
    check(sampled(policy, how, told), sampled(policy, how, None), told)
    if setting != "greedy":
        assert 2 <= len(told) < GROUPS, "several at a time, and not all at the end"


def test_without_compaction_too() -> None:
    policy, how = letters(), Sampling(samples=K, max_new_tokens=STEPS)
    told: list[Rollout] = []
    check(sampled(policy, how, told, compact=False), sampled(policy, how, None), told)
    assert len(told) > 1


@pytest.mark.parametrize("name", POLICIES)
def test_where_ends_are_looked_for_every_few_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, how = POLICIES[name](), Sampling(samples=K, max_new_tokens=STEPS)
    alone = sampled(policy, how, None)
    monkeypatch.setattr(sampler, "steps_between_looks", lambda device: 5)
    told: list[Rollout] = []
    check(sampled(policy, how, told), alone, told)
    assert len(told) > 1


def test_within_a_constraint(tmp_path: Path) -> None:
    policy, how = logits(), Sampling(samples=K, max_new_tokens=STEPS)
    parts: list[list[Rollout]] = [[], []]

    def within() -> Nucleus:
        made = Nucleus("mask", top_p=0.7)
        made.resolve({"mask": policy, "policy": policy})
        return made

    examples = [Example(str(i), str(i)) for i in range(GROUPS)]
    uniforms = Seeds(1).uniforms("told", positions=range(GROUPS), samples=K, steps=STEPS)
    whole = policy.sample(examples, how, uniforms, within(), parts[0].append)
    check(whole, policy.sample(examples, how, uniforms, within()), parts[0])
    assert whole.allowed is not None and len(parts[0]) > 1


def test_logits_that_are_no_numbers_are_told_to_nobody() -> None:
    policy, told = letters(), []
    with torch.no_grad():
        policy.table[101] = float("nan")  # after an `e`
    with pytest.raises(RLAlignError, match=r"NaN"):
        sampled(policy, Sampling(samples=K, max_new_tokens=STEPS), told)
    for part in told:
        assert not part.logprobs_NT.isnan().any()
