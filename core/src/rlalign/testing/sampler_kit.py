"""Tests to inherit: what every sampler elsewhere must do, wherever it samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.interface.sampler import Sampler
from rlalign.running.ahead import Question
from rlalign.running.elsewhere import asked_elsewhere, asking
from rlalign.testing.bench import Bench
from rlalign.testing.kit import ComponentTests, json_options

HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.5},
    "min_new_tokens": {"min_new_tokens": 3},
    "greedy": {"greedy": True},
    "together": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_new_tokens": 2},
}
"""How it is asked to sample, where it does not lack that."""
STEPS, SAMPLES = 5, 3
DRAWS, COMMON = 400, 5
FAR = 35.0
"""Chi-squared at five degrees of freedom: more happens once in 660,000 draws."""


class SamplerTests(ComponentTests):
    """Inherit, name the sampler and pytest does the rest.

    `component` is its name or class, `options` what the pipeline gives it. It samples a policy of bytes; where it needs
    another, `pipeline` names it, with a task. `tolerance` is how far its log-probs may lie from the policy's own;
    `exact = False` says that equal seeds may give other tokens.
    """

    tolerance: ClassVar[float] = 1e-4
    exact: ClassVar[bool] = True

    def whole_pipeline(self) -> dict[str, Any]:
        """A small pipeline that it samples for."""
        whole = {
            **super().whole_pipeline(),
            "policy": {"bytes": {"seed": 1}},
            "rewards": ["length"],
            "models": {"sampler": {self.named: json_options(self.options)}},
            "generation": {"samples": SAMPLES, "max_new_tokens": STEPS},
            "train": {"iterations": 3, "prompts": 4, "lr": 0.5},
        }
        return {**whole, **self.pipeline}

    def sampler(self, bench: Bench) -> Sampler:
        found = bench.phase.sampler
        assert found is not None
        return found

    def ask(self, bench: Bench, how: Sampling, examples: Sequence[Example], first: int = 0) -> Rollout:
        """Its responses with the policy's present weights; `first`, a place of the draw, says the seeds."""
        return asked_elsewhere(
            bench.phase, self.sampler(bench), Question(tuple(examples), how, ("kit",), first)
        )

    def honoured(self, bench: Bench) -> list[Sampling]:
        said = [Sampling(samples=SAMPLES, max_new_tokens=STEPS, **how) for how in HOW.values()]
        return [how for how in said if not list(self.sampler(bench).lacks(how))]

    def asked(self, bench: Bench) -> list[Example]:
        """Some examples, each once."""
        return list({example.id: example for example in bench.phase.draw.next(4)}.values())

    def gap(self, bench: Bench, rollout: Rollout) -> float:
        """How far from the policy's own its log-probs lie at most."""
        ours_NT = bench.engine.score("policy", rollout, ("logprobs",)).logprobs_NT
        return float((ours_NT - rollout.logprobs_NT)[rollout.mask_NT].abs().max())

    # -- what it must do ------------------------------------------------------------------------------

    def test_what_it_lacks_begins_with_an_option(self, bench: Bench) -> None:
        others: tuple[dict[str, Any], ...] = ({}, {"beams": 3, "greedy": True}, {"stop": ("a",)})
        for how in (*others, *HOW.values()):
            for said in self.sampler(bench).lacks(Sampling(samples=1, max_new_tokens=STEPS, **how)):
                name, colon, _ = said.partition(":")
                assert colon and name in Sampling.model_fields, (
                    f"`lacks` says {said!r}, which begins with no option of `generation`"
                )

    def test_responses_are_what_was_asked_for(self, bench: Bench) -> None:
        examples = self.asked(bench)
        ends = torch.tensor(bench.run.models.policy.ends)
        for how in self.honoured(bench):
            rollout = self.ask(bench, how, examples)
            assert rollout.group_N.tolist() == [
                g for g in range(len(examples)) for _ in range(how.samples)
            ], how
            length_N, last_N = rollout.length_N, rollout.actions_NT.gather(1, rollout.length_N[:, None] - 1)
            assert int(length_N.max()) <= how.max_new_tokens, how
            assert not bool((rollout.finished_N & (length_N < how.min_new_tokens)).any()), how
            assert torch.equal(rollout.finished_N, torch.isin(last_N[:, 0], ends)), (
                f"{how}: `finished` is whether the last token is one that ends a response"
            )
            assert bool((length_N[~rollout.finished_N] == how.max_new_tokens).all()), f"{how}: cut too early"
            ended_NT = torch.isin(rollout.actions_NT, ends) & rollout.mask_NT
            assert bool((ended_NT.sum(1) == rollout.finished_N).all()), f"{how}: it goes on behind an end"

    def test_log_probs_are_those_of_the_policy(self, bench: Bench) -> None:
        """Of the distribution that was really sampled from: after temperature and truncation."""
        self.move(bench, 0)
        for how in self.honoured(bench):
            apart = self.gap(bench, self.ask(bench, how, self.asked(bench)))
            assert apart <= self.tolerance, (
                f"{how}: {apart:.1e} from the policy's, more than `tolerance`, {self.tolerance:.0e}"
            )

    def test_it_samples_with_the_weights_of_now(self, bench: Bench) -> None:
        examples, how = self.asked(bench), Sampling(samples=SAMPLES, max_new_tokens=STEPS)
        for seed in range(3):
            self.move(bench, seed)
            apart = self.gap(bench, self.ask(bench, how, examples))
            assert apart <= self.tolerance, (
                f"after {seed + 1} changes of the weights: {apart:.1e} from the policy's"
            )

    def test_tokens_come_as_often_as_they_should(self, bench: Bench) -> None:
        """The first ones of many responses: Pearson's test on the likeliest tokens, and all others together."""
        policy, example = bench.run.models.policy, self.asked(bench)[:1]
        with torch.no_grad():
            p_V = (policy.decoder(policy.prompts(example), 1).logits()[0].double() / 0.7).softmax(0)
        likely = p_V.topk(COMMON).indices
        how = Sampling(samples=DRAWS, max_new_tokens=1, temperature=0.7)
        token_N = self.ask(bench, how, example).actions_NT[:, 0]
        seen = torch.tensor([int((token_N == token).sum()) for token in likely], dtype=torch.float64)
        expected = DRAWS * p_V[likely]
        far = _pearson(seen, expected) + _pearson(DRAWS - seen.sum(), DRAWS - expected.sum())
        assert far < FAR, (
            f"{seen.tolist()} times the likeliest tokens, where {expected.tolist()} are expected"
        )

    def test_equal_seeds_give_equal_tokens(self, bench: Bench) -> None:
        """However they are asked for: so a resumed run repeats its responses."""
        if not self.exact:
            pytest.skip(f"`{self.named}` repeats nothing: `exact` is False")
        examples, how = self.asked(bench), Sampling(samples=SAMPLES, max_new_tokens=STEPS)
        whole, again = (self.ask(bench, how, examples) for _ in range(2))
        assert torch.equal(whole.actions_NT, again.actions_NT), "the same, asked twice"
        for g, example in enumerate(examples):
            alone, rows = self.ask(bench, how, [example], g), whole.group_N == g
            steps = min(alone.steps, whole.steps)
            assert torch.equal(alone.actions_NT[:, :steps], whole.actions_NT[rows][:, :steps]), (
                "an example alone"
            )
        other = self.ask(bench, how, examples, 1000)
        assert whole.actions_NT.shape != other.actions_NT.shape or not torch.equal(
            whole.actions_NT, other.actions_NT
        ), "other seeds change nothing"

    def test_global_random_numbers_are_left_alone(self, bench: Bench) -> None:
        examples, how = self.asked(bench), Sampling(samples=2, max_new_tokens=STEPS)
        before = torch.get_rng_state(), random.getstate()
        self.ask(bench, how, examples)
        assert torch.equal(torch.get_rng_state(), before[0]), "torch's generator moved"
        assert random.getstate() == before[1], "Python's generator moved"

    def test_it_samples_while_the_policy_learns(self, bench: Bench) -> None:
        """In a thread, while the policy's weights and the global generator move: the same tokens as alone."""
        sampler, examples = self.sampler(bench), self.asked(bench)
        if not (sampler.concurrent and self.exact):
            pytest.skip(f"`{self.named}` does not say `concurrent`, or repeats nothing")
        question = Question(tuple(examples), Sampling(samples=SAMPLES, max_new_tokens=STEPS), ("kit",), 0)
        alone, moved = self.ask(bench, question.how, examples), 0
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(asking(bench.phase, sampler, question))
            while moved == 0 or not answer.done():
                self.move(bench, moved)
                torch.manual_seed(moved)
                moved += 1
        beside = answer.result()
        for name in ("actions_NT", "logprobs_NT"):
            assert torch.equal(getattr(alone, name), getattr(beside, name)), (
                f"{name} follow from what happens meanwhile: `concurrent` belongs to samplers that have weights and "
                "random numbers of their own"
            )

    def test_it_may_be_closed_before_it_was_opened(self) -> None:
        made: Any = self.cls(self.config)
        made.close()

    def test_resume_is_exact(self, tmp_path: Any) -> None:
        """Stopped after one iteration and resumed: the same weights and metrics to the bit, if it repeats itself."""
        if not self.exact:
            pytest.skip(f"`{self.named}` repeats nothing: `exact` is False")
        super().test_resume_is_exact(tmp_path)


def _pearson(seen: Tensor, expected: Tensor) -> float:
    return float(((seen - expected) ** 2 / expected.clamp_min(1e-9)).sum())
