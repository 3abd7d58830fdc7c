"""NLPO is PPO with a constraint and a copy that follows: two lines more, and the ratio stays exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rlalign import Rollout
from rlalign.decoding.top_k_top_p import nucleus
from rlalign.testing import Bench
from rlalign.testing.kit import ComponentTests

from .conftest import Runs, component
from .methods import METHODS, NLPO, PolicyGradient, same
from .test_ppo import PIPELINE

NARROW: dict[str, Any] = {
    **PIPELINE,
    "algorithm": [{"nlpo": {"top_p": 0.6, "refresh": 3}}, "watch"],
    "train": {**PIPELINE["train"], "iterations": 7, "lr": 0.1},
}


def test_samples_stay_within_the_copys_nucleus(runs: Runs) -> None:
    session = runs(NARROW)
    watch = component(session, "watch")
    masks = [watch.started[0]["mask"], *(weights["mask"] for weights in watch.done)]
    policies = [weights["policy"] for weights in watch.done]

    # The copy takes the policy's weights after iterations 3 and 6, and changes at no other time.
    for i in range(1, 8):
        assert same(masks[i], policies[i - 1] if i in (3, 6) else masks[i - 1])
    assert not same(masks[0], masks[3]) and not same(masks[3], masks[6])

    # What was allowed is the copy's top-p set, of the weights it had, at its own temperature 1.
    mask = session.models["mask"]
    for i, batch in enumerate(watch.batches):
        rollout = batch.rollout
        mask.load_state_dict(masks[i])
        with torch.no_grad():
            expected_MV = nucleus(mask.head(mask.features(rollout)), 0.6)
        expected_MV[:, -1] = True  # ending is always allowed
        allowed_MV = rollout.allowed.mask(*rollout.chosen)
        assert torch.equal(allowed_MV, expected_MV)
        assert not bool(allowed_MV.all()), "the mask does not bind"
        assert bool(allowed_MV.gather(1, rollout.actions_NT[rollout.mask_NT][:, None]).all())


def test_probabilities_sum_to_one_on_what_was_allowed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NARROW, METHODS)
    batch = bench.batch()
    rollout = batch.rollout
    at = rollout.mask_NT
    allowed_MV = rollout.allowed.mask(*rollout.chosen)
    p_MV = torch.stack([_probability(bench, rollout, token)[at] for token in range(6)], 1)
    torch.testing.assert_close(p_MV.sum(1), torch.ones_like(p_MV[:, 0]), rtol=0, atol=1e-14)
    assert torch.equal(p_MV > 0, allowed_MV)
    # The old log-probs are the sampler's own, under that distribution.
    assert torch.equal(batch.old_logprobs_NT[at], rollout.logprobs_NT[at])
    torch.testing.assert_close(
        rollout.logprobs_NT[at].exp(),
        p_MV.gather(1, rollout.actions_NT[at][:, None])[:, 0],
        rtol=1e-14,
        atol=0,
    )
    assert bool((rollout.logprobs_NT >= rollout.full_logprobs_NT)[at].all())


def _probability(bench: Bench, rollout: Rollout, token: int) -> torch.Tensor:
    instead = replace(rollout, actions_NT=torch.full_like(rollout.actions_NT, token))
    return bench.run.score("policy", instead, ["logprobs"]).logprobs_NT.exp()


def test_with_everything_allowed_it_is_ppo_to_the_bit(runs: Runs) -> None:
    pipeline = {**NARROW, "policy": {"logits": {**NARROW["policy"]["logits"], "scale": 3.0}}}

    def learn(algorithm: dict[str, Any]) -> Any:  # in a phase of the same name, which random numbers go by
        return runs({**pipeline, "phases": [{"name": "only", "algorithm": [algorithm, "watch"]}]})

    nlpo, ppo = learn({"nlpo": {"top_p": 1.0, "refresh": 3}}), learn({"ppo": {}})
    assert all(batch.rollout.allowed is None for batch in component(nlpo, "watch").batches)
    for name in ("policy", "value"):
        assert same(nlpo.models[name].state_dict(), ppo.models[name].state_dict())


def test_evaluation_is_not_constrained(runs: Runs) -> None:
    evaluate = {"examples": 64, "generation": {"greedy": False, "temperature": 3.0}}
    algorithm = [{"nlpo": {"top_p": 0.01}}, "watch"]
    session = runs(
        {
            **NARROW,
            "algorithm": algorithm,
            "evaluate": evaluate,
            "train": {**NARROW["train"], "iterations": 1},
        }
    )
    texts = (session.dir.path / "samples.jsonl").read_text()
    assert component(session, "watch").batches[0].rollout.allowed is not None
    assert len(set(texts.splitlines())) > 4


class NeverTwice:
    """A constraint of a stranger: no token may follow itself."""

    def start(self, inputs: Sequence[torch.Tensor], k: int) -> None:
        self.allowed_nV = torch.ones(len(inputs) * k, 6, dtype=torch.bool)

    def allowed(self) -> torch.Tensor:
        return self.allowed_nV

    def advance(self, tokens_n: torch.Tensor) -> None:
        self.allowed_nV = torch.ones_like(self.allowed_nV).scatter(1, tokens_n[:, None], False)

    def select(self, rows: torch.Tensor) -> None:
        self.allowed_nV = self.allowed_nV[rows]


class Careful(PolicyGradient):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.constraint = NeverTwice()


def test_a_constraint_may_be_anybodys(runs: Runs) -> None:
    session = runs({**NARROW, "algorithm": ["careful", "watch"], "models": None}, careful=Careful)
    for batch in component(session, "watch").batches:
        for text in batch.rollout.texts:
            tokens = text.split()
            assert all(a != b for a, b in pairwise(tokens))
        first_M = batch.rollout.chosen[1] == 0
        assert bool(batch.rollout.allowed.mask(*batch.rollout.chosen)[first_M].all())


class TestNLPO(ComponentTests):
    component = NLPO
    options = {"top_p": 0.7, "refresh": 1}
