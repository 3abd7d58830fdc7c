"""Where memory does not hold all prompts they are answered some at a time, and nothing else moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign.builtin.nucleus import Nucleus
from rlalign.costs.memory import SAMPLED
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.decoding.interfaces import Decoder
from rlalign.testing import Logits

PROMPTS, K, STEPS = 13, 3, 9
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"greedy": True},
    "narrowed": {"top_p": 0.8, "min_new_tokens": 3},
    "stop strings": {"stop": ("1",)},
}


class Small(Logits):
    """A policy on a machine with little memory."""

    rows = 10**9
    after = 0
    """How many steps go well before memory runs out."""

    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        self.tried.append(len(inputs))
        full = len(inputs) * k > self.rows
        if full and not self.after:
            raise torch.OutOfMemoryError("no memory left")
        return Fills(super().decoder(inputs, k), self.after if full else 10**9)


class Fills:
    def __init__(self, decoder: Decoder, after: int) -> None:
        self.decoder, self.after = decoder, after
        self.select = decoder.select
        self.logits = decoder.logits

    def advance(self, tokens_n: Tensor) -> None:
        self.after -= 1
        if self.after == 0:
            raise torch.OutOfMemoryError("no memory left")
        self.decoder.advance(tokens_n)


def policy(rows: int, after: int = 0) -> Small:
    made = Small(Small.Config(prompts=PROMPTS, responses=K, steps=STEPS, vocabulary=6, seed=3))
    made.setup()
    made.rows, made.after, made.tried = rows, after, []
    return made


def sampled(
    model: Small, how: Sampling, told: list[Rollout] | None = None, mask: Small | None = None
) -> Rollout:
    within = None
    if mask is not None:
        within = Nucleus("mask", top_p=0.7)
        within.resolve({"mask": mask})
    examples = [Example(str(i), str(i)) for i in range(PROMPTS)]
    uniforms = torch.rand(PROMPTS, K, STEPS, generator=torch.Generator().manual_seed(5))
    return model.sample(examples, how, uniforms, within, None if told is None else told.append)


def same(one: Rollout, other: Rollout) -> None:
    for name in (
        "actions_NT",
        "mask_NT",
        "logprobs_NT",
        "full_logprobs_NT",
        "finished_N",
        "group_N",
        "setting_N",
    ):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.texts, one.settings) == (other.texts, other.settings)
    assert [example.id for example in one.examples] == [example.id for example in other.examples]
    assert all(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
    assert (one.allowed is None) == (other.allowed is None)
    if one.allowed is not None and other.allowed is not None:
        assert torch.equal(one.allowed.mask(*one.chosen), other.allowed.mask(*other.chosen))


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("name", HOW)
def test_fewer_at_once_are_the_same(name: str, after: int) -> None:
    how = Sampling(samples=K, max_new_tokens=STEPS, **HOW[name])
    whole = sampled(policy(10**9), how)
    small = policy(4 * K, after)
    told: list[Rollout] = []
    same(sampled(small, how, told), whole)
    assert small.tried == [13, 7, 4, 4, 4, 1]
    ids = [example.id for part in told for example in part.examples]
    assert sorted(ids, key=int) == [str(i) for i in range(PROMPTS)], (
        "each group once, whatever was begun again"
    )
    small.tried.clear()
    same(sampled(small, how), whole)
    assert small.tried == [4, 4, 4, 1], "what did not fit is not tried again"
    fewer = how.model_copy(update={"samples": 1})
    small.tried.clear()
    sampled(small, fewer)
    assert small.tried == [12, 1], "it is responses that fit"


def test_a_constraint_begins_with_each() -> None:
    how = Sampling(samples=K, max_new_tokens=STEPS)
    whole = sampled(policy(10**9), how, mask=policy(10**9))
    same(sampled(policy(10**9), how, mask=policy(2 * K)), whole)
    same(sampled(policy(5 * K, 3), how, mask=policy(10**9)), whole)


def test_a_cpu_samples_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory runs out the kernel ends the process, so that nobody could begin again with fewer."""
    how = Sampling(samples=K, max_new_tokens=STEPS)
    whole = sampled(policy(10**9), how)
    asked: list[int] = []
    small, mask = policy(10**9), policy(10**9)

    def row_bytes(tokens: int) -> float:
        asked.append(tokens)
        return 1000.0

    small.row_bytes = row_bytes  # type: ignore[method-assign]
    monkeypatch.setattr("rlalign.decoding.chunks.machine_memory", lambda: 5 * K * 1000 / SAMPLED)
    same(sampled(small, how), whole)
    (longest,) = {len(x) for x in whole.inputs}
    assert small.tried == [5, 5, 3] and asked == [longest + STEPS]
    small.tried.clear()
    sampled(small, how, mask=mask)
    assert small.tried == [2, 2, 2, 2, 2, 2, 1], "a constraint's model has rows of its own"
    small.tried.clear()
    monkeypatch.setattr("rlalign.decoding.chunks.machine_memory", lambda: 0)
    same(sampled(small, how), whole)
    assert small.tried == [1] * PROMPTS


def test_one_prompt_that_does_not_fit_is_told() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="no memory left") as raised:
        sampled(policy(K - 1), Sampling(samples=K, max_new_tokens=STEPS))
    assert "3 responses to one prompt do not fit" in raised.value.__notes__[0]
