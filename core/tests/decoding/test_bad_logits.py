"""Logits that are no numbers end a rollout or a scoring by name; where bans leave nothing, the next likely is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign import Component, Learner, Nucleus, Rollout, Run, Sampling, hookimpl
from rlalign.builtin import nucleus as nucleus_of_a_model
from rlalign.data.example import Example
from rlalign.decoding import sampler
from rlalign.decoding.interfaces import Finished
from rlalign.decoding.logits import bad_logits
from rlalign.decoding.nucleus import nucleus
from rlalign.decoding.sampler import sample
from rlalign.errors import BadLogits, RLAlignError
from rlalign.learning.engine import Engine
from rlalign.randomness import Seeds
from rlalign.testing import Logits, session

V = 7
INF, NAN = math.inf, math.nan
BAD = ([NAN] + [0.0] * (V - 1), [INF] + [0.0] * (V - 1), [-INF] * V)


def policy(**options: Any) -> Logits:
    made = Logits(Logits.Config(prompts=3, responses=2, steps=4, vocabulary=V, **options))
    made.setup()
    return made.double().eval()


def drawn(
    model: Logits, how: Sampling, within: Nucleus | None = None, finished: Finished | None = None
) -> Rollout:
    u = Seeds(1).uniforms("sample", positions=range(3), samples=how.samples, steps=4)
    rollout = sample(model, [Example(f"e{i}", str(i)) for i in range(3)], how, u, within, finished)
    return rollout.with_columns(slot=torch.arange(how.samples).repeat(3))


HOW = {
    "plain": Sampling(samples=2, max_new_tokens=4),
    "greedy": Sampling(samples=2, max_new_tokens=4, greedy=True),
    "truncated": Sampling(samples=2, max_new_tokens=4, top_k=3, top_p=0.9, min_p=0.01),
    "banned": Sampling(samples=2, max_new_tokens=4, min_new_tokens=4, temperature=0.7),
}


@pytest.mark.parametrize("bad", BAD, ids=("nan", "inf", "nothing"))
@pytest.mark.parametrize("how", HOW)
def test_no_token_comes_of_bad_logits(how: str, bad: list[float]) -> None:
    """The third step of the second prompt's first response, if it comes to that."""
    model = policy(ending=False)
    with torch.no_grad():
        model.free[2, 2] = torch.tensor(bad)
    with pytest.raises(
        BadLogits, match=r"example `e1`, response 1, step 3: the logits of the model `Logits`"
    ):
        drawn(model, HOW[how])


@pytest.mark.parametrize("told", [False, True])
def test_bad_logits_of_a_token_that_is_banned_are_found_too(told: bool) -> None:
    """What is left to choose from has log-probs; among all tokens there are none."""
    model = policy()
    with torch.no_grad():
        model.free[2, 2, V - 1] = INF
    seen: list[Rollout] = []
    with pytest.raises(
        BadLogits, match=r"example `e1`, response 1, step 3: the logits of the model `Logits`"
    ):
        drawn(model, HOW["banned"], finished=seen.append if told else None)
    assert not any(bool(part.full_logprobs_NT.isnan().any()) for part in seen)


@pytest.mark.parametrize("how", HOW)
def test_a_token_may_be_impossible(how: str) -> None:
    model = policy()
    with torch.no_grad():
        model.free[:, :, 1:4] = -INF
    rollout = drawn(model, HOW[how])
    assert bool(rollout.logprobs_NT.isfinite().all())
    scored = Engine({"policy": model}).score("policy", rollout, ["logprobs", "entropy"])
    assert bool(scored.logprobs_NT.isfinite().all() and scored.entropy_NT.isfinite().all())


@pytest.mark.parametrize("bad", BAD, ids=("nan", "inf", "nothing"))
@pytest.mark.parametrize("output", ["logprobs", "full_logprobs", "entropy"])
@pytest.mark.parametrize("how", HOW)
def test_bad_logits_are_not_scored(how: str, output: str, bad: list[float]) -> None:
    model, other = policy(ending=False), policy(ending=False)
    rollout = drawn(model, HOW[how])
    with torch.no_grad():
        other.free[2, 2] = torch.tensor(bad)
    other.name = "reference"
    with pytest.raises(
        BadLogits, match=r"example `e1`, row 3 of those scored, step 3: .* `reference` are NaN"
    ):
        Engine({"reference": other}).score("reference", rollout, [output])


def test_a_nucleus_of_bad_logits_says_whose() -> None:
    model, mask = policy(ending=False), policy(ending=False)
    mask.name = "mask"
    with torch.no_grad():
        mask.free[2, 2] = NAN
    within = Nucleus("mask", top_p=0.5)
    within.resolve({"mask": mask})
    with pytest.raises(
        BadLogits, match=r"step 3 of a response: the logits of the model `mask`.*it has diverged"
    ):
        drawn(model, HOW["plain"], within)


@pytest.mark.parametrize("every", [2, 3, 8])
def test_a_nucleus_that_looks_seldom_still_finds_bad_logits(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. Where the rollout is over before the next look nothing is left to choose, which is refused too."""
    model, mask = policy(ending=False), policy(ending=False)
    with torch.no_grad():
        mask.free[2, 2] = NAN
    for module in (sampler, nucleus_of_a_model):
        monkeypatch.setattr(module, "steps_between_looks", lambda device: every)
    within = Nucleus("mask", top_p=0.5)
    within.resolve({"mask": mask})
    with pytest.raises(RLAlignError, match="nothing is left to choose" if every == 8 else "step 3 of a resp"):
        drawn(model, HOW["plain"], within)


def test_weights_of_use_are_told_apart_from_those_that_diverged() -> None:
    model = policy(hidden=4, ending=False)
    assert "its weights are finite, so a number overflows" in str(bad_logits(model, "here"))
    with torch.no_grad():
        model.free.fill_(1.0)
        model.output.fill_(1e308)
        model.mixing.fill_(1.0)
    with pytest.raises(BadLogits, match=r"`output` holds 1e\+308: it has diverged"):
        drawn(model, HOW["plain"])


def test_a_temperature_that_no_logit_survives_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=1e-40)
    coldest = Sampling(samples=2, max_new_tokens=4, temperature=1e-8)
    rollout = drawn(policy(scale=1e4).float(), coldest)
    assert bool(rollout.logprobs_NT.isfinite().all())


class Diverges(Component):
    """Breaks the policy in the first iteration, as a learning rate might."""

    @hookimpl
    def update(self, run: Run, learner: Learner) -> dict[str, float]:
        learner.assign(torch.full_like(learner.parameters(), NAN))
        return {}


def test_a_run_says_at_which_iteration(tmp_path: Path) -> None:
    say = {
        "task": "numbers",
        "policy": "logits",
        "rewards": ["token-sum"],
        "algorithm": ["policy-gradient", "diverges"],
        "responses": "sampled",
        "generation": {"samples": 2, "max_new_tokens": 4},
        "train": {"iterations": 3, "prompts": 2},
    }
    started = session(tmp_path, say, {"diverges": Diverges})
    with pytest.raises(
        BadLogits, match=r"iteration 2 of `policy-gradient`: .*example `.*step 1: .*`policy`.*diverged"
    ):
        started.run()


# -- where bans leave nothing -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-16, 16).map(lambda n: n / 2), min_size=V, max_size=V, unique=True),
    st.integers(-16, 80).map(lambda n: n / 2 + 0.25),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.integers(1, V + 1),
    st.integers(0, 3),
    st.integers(0, 4),
)
def test_where_a_nucleus_holds_only_what_is_banned_the_next_likely_tokens_are_kept(
    likely: list[float], end: float, top_p: float, min_keep: int, top_k: int, least: int
) -> None:
    model, mask = policy(), policy()
    with torch.no_grad():
        mask.free.copy_(torch.tensor([*likely[:-1], end]).expand_as(mask.free))
    within = Nucleus("mask", top_p=top_p, min_keep=min_keep)
    within.resolve({"mask": mask})
    rollout = drawn(model, Sampling(samples=2, max_new_tokens=4, min_new_tokens=least, top_k=top_k), within)
    assert bool((rollout.length_N >= min(4, least)).all())
    again = Engine({"policy": model}).score("policy", rollout, ["logprobs", "entropy"])
    torch.testing.assert_close(again.logprobs_NT, rollout.logprobs_NT, rtol=0, atol=1e-12)
    assert bool(again.entropy_NT.isfinite().all())
    if top_k:
        return
    row_M, step_M = rollout.chosen
    for row, step in zip(row_M.tolist(), step_M.tolist(), strict=True):
        at = torch.tensor([row]), torch.tensor([step])
        kept_V = torch.ones(V, dtype=torch.bool) if rollout.allowed is None else rollout.allowed.mask(*at)[0]
        assert torch.equal(kept_V, expected(mask.free[0, 0], top_p, min_keep, banned=step < least))


def expected(logits_V: Tensor, top_p: float, min_keep: int, *, banned: bool) -> Tensor:
    """The nucleus and the `min_keep` best, with the end; or without it, and if that is nothing, the next best."""
    kept_V = nucleus(logits_V[None], top_p)[0]
    kept_V |= logits_V >= logits_V.topk(min(min_keep, V)).values[-1]
    kept_V[V - 1] = not banned
    if not bool(kept_V.any()):
        kept_V |= logits_V >= logits_V[: V - 1].topk(min(min_keep, V - 1)).values[-1]
        kept_V[V - 1] = False
    return kept_V


def test_a_policy_that_can_only_end_where_it_may_not_is_an_error() -> None:
    model = policy()
    with torch.no_grad():
        model.free[:, :, : V - 1] = -INF
    with pytest.raises(
        RLAlignError, match=r"example `e0`, response 1, step 1: nothing is left to choose.*policy"
    ):
        drawn(model, HOW["banned"])
