"""Tests to inherit: what every policy must do, whatever network it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.data.turn import Turn
from rlalign.interface.policy import Policy
from rlalign.randomness import Seeds
from rlalign.testing.bench import Bench
from rlalign.testing.kit import json_options
from rlalign.testing.model_kit import ModelTests
from rlalign.testing.process import PROCESS, same

SAMPLES = 3
"""Responses to each prompt."""
HOW: Sequence[dict[str, Any]] = ({}, {"temperature": 0.7}, {"top_k": 2}, {"min_new_tokens": 2})
"""How they are sampled."""


class Talk:
    """A game in which each of two responses is answered with another prompt, and the third ends it."""

    turns, tokens = 3, 36

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self._heard = Counter[int]()

    def start(self, part: slice) -> tuple[Sequence[Example], Sequence[Turn]]:
        self._heard.clear()
        begun = self.examples[part]
        return begun, [Turn()] * (SAMPLES * len(begun))

    def step(self, rows: Sequence[int], texts: Sequence[str]) -> Sequence[Turn]:
        self._heard.update(rows)
        return [self._answer(row, self._heard[row]) for row in rows]

    def _answer(self, row: int, heard: int) -> Turn:
        if heard == self.turns:
            return Turn(done=True)
        return Turn(self.examples[(row + heard) % len(self.examples)].prompt)

    def close(self, rows: Sequence[int] | None = None) -> None:
        """Nothing to close."""


class PolicyTests(ModelTests):
    """Inherit, name the policy and pytest does the rest.

    `component` is its name or class, `options` what the pipeline gives it. It is tried on the prompts of the task
    `numbers`, "0" to "5"; where it reads others, `pipeline` names another task. All is computed in float64;
    `tolerance` is how far apart two ways to one log-prob may lie. `plays = False`: it plays no episodes of several
    turns with these options; one without `given` never does.
    """

    plays: ClassVar[bool] = True

    def whole_pipeline(self) -> dict[str, Any]:
        """A small pipeline of the policy."""
        whole = super().whole_pipeline()
        return {**whole, "policy": {self.named: json_options(self.options)}, **self.pipeline}

    @pytest.fixture
    def policy(self, bench: Bench) -> Policy:
        """It, with its weights a little elsewhere: those that begin at zero hide faults."""
        self.move(bench, 0)
        found = bench.engine.models["policy"]
        assert isinstance(found, Policy)
        return found

    def asked(self, bench: Bench) -> list[Example]:
        """Some examples."""
        examples = bench.phase.draw.next(4)
        return list({example.id: example for example in examples}.values())

    def sampled(self, policy: Policy, examples: Sequence[Example], first: int = 0, **how: Any) -> Rollout:
        """Responses to these examples, of which the first has the place `first`: that says what is drawn."""
        chosen = Sampling(samples=SAMPLES, max_new_tokens=min(6, policy.horizon or 6), **how)
        places = range(first, first + len(examples))
        uniforms = Seeds(0).uniforms("u", positions=places, samples=SAMPLES, steps=chosen.max_new_tokens)
        return policy.sample(examples, chosen, uniforms)

    def logprobs(self, bench: Bench, rollout: Rollout) -> Tensor:
        """[N,T]: what the policy says of these responses, as in learning."""
        return bench.engine.score("policy", rollout, ["logprobs"]).logprobs_NT.detach()

    # -- responses --------------------------------------------------------------------------------------

    def test_responses_are_sound(self, bench: Bench, policy: Policy) -> None:
        rollout = self.sampled(policy, self.asked(bench))
        assert rollout.flaw() is None, rollout.flaw()
        lengths = rollout.length_N.tolist()
        written = [policy.text(row[:n]) for row, n in zip(rollout.actions_NT, lengths, strict=True)]
        assert list(rollout.texts) == written, "the texts of responses are not those of their tokens"
        if policy.ends:
            ended = [
                int(row[n - 1]) in policy.ends for row, n in zip(rollout.actions_NT, lengths, strict=True)
            ]
            assert rollout.finished_N.tolist() == ended, (
                "a response is finished where its last token is an end"
            )

    def test_a_prompt_is_answered_as_if_it_were_alone(self, bench: Bench, policy: Policy) -> None:
        """With the same random numbers: padding, and rows that are dropped, move nothing."""
        examples = self.asked(bench)
        together = self.sampled(policy, examples)
        for g, example in enumerate(examples):
            alone, part = self.sampled(policy, [example], g), together.take(together.group_N == g)
            steps = int(alone.length_N.max())
            assert part.length_N.tolist() == alone.length_N.tolist(), f"`{example.id}`: other lengths alone"
            taken = part.mask_NT[:, :steps]
            for name in ("actions_NT", "logprobs_NT", "full_logprobs_NT"):
                mine, theirs = getattr(part, name)[:, :steps][taken], getattr(alone, name)[:, :steps][taken]
                self.close(mine, theirs, f"`{example.id}`: {name} is another where it is asked alone")

    def test_sampling_and_learning_agree(self, bench: Bench, policy: Policy) -> None:
        """The decoder's log-probs are those of features and head, however responses are sampled."""
        for how in HOW:
            if how.get("min_new_tokens", 0) > (policy.horizon or 6):
                continue
            rollout = self.sampled(policy, self.asked(bench), **how)
            scored, at = bench.engine.score("policy", rollout, ["logprobs", "full_logprobs"]), rollout.mask_NT
            self.close(
                scored.logprobs_NT[at], rollout.logprobs_NT[at], f"log-probs under {how or 'no option'}"
            )
            self.close(
                scored.full_logprobs_NT[at], rollout.full_logprobs_NT[at], f"all log-probs under {how}"
            )

    def test_episodes_are_learned_as_they_were_played(self, bench: Bench, policy: Policy) -> None:
        """What it is told stands in the row, and learning says the same of the rest."""
        if not self.plays or type(policy).given is Policy.given:
            pytest.skip(f"`{self.named}` plays no episodes of several turns")
        examples = self.asked(bench)
        game = Talk(examples)
        chosen = Sampling(samples=SAMPLES, max_new_tokens=min(3, policy.horizon or 3))
        places = range(len(examples))
        uniforms = Seeds(0).uniforms("u", positions=places, samples=SAMPLES, steps=game.tokens)
        rollout = policy.play(examples, chosen, uniforms, game)
        assert rollout.flaw() is None, rollout.flaw()
        told_N = rollout.length_N - rollout.mask_NT.sum(1)
        assert bool((told_N > 0).all()), "what a policy is told between two responses is not in their row"
        says = partial(self.logprobs, bench)
        at = rollout.mask_NT
        self.close(says(rollout)[at], rollout.logprobs_NT[at], "log-probs of episodes")
        self.check_padding(says, rollout)
        self.check_rows(says, rollout)

    # -- the network --------------------------------------------------------------------------------------

    def test_padding_moves_nothing(self, bench: Bench, policy: Policy) -> None:
        self.check_padding(partial(self.logprobs, bench), self.sampled(policy, self.asked(bench)))

    def test_rows_move_no_others(self, bench: Bench, policy: Policy) -> None:
        self.check_rows(partial(self.logprobs, bench), self.sampled(policy, self.asked(bench)))

    def test_features_of_the_last_states(self, bench: Bench, policy: Policy) -> None:
        """With `last` the same rows, and one more a response."""
        rollout = self.sampled(policy, self.asked(bench))
        with torch.no_grad():
            some, more = policy.features(rollout), policy.features(rollout, last=True)
        assert len(some) == len(rollout.chosen[0]), "`features` gives a row for each step that was chosen"
        assert len(more) == len(some) + len(rollout), "with `last`, `features` gives a row more a response"
        self.close(more[: len(some)], some, "the features of steps, with `last`")

    def test_the_head_is_its_matrix(self, bench: Bench, policy: Policy) -> None:
        matrix = policy.head_matrix()
        if matrix is None:
            return
        with torch.no_grad():
            features = policy.features(self.sampled(policy, self.asked(bench)))
            self.close(
                policy.head(features), features @ matrix.T, "`head_matrix` is not all that `head` does"
            )

    def test_gradient_of_the_network_is_that_of_finite_differences(
        self, bench: Bench, policy: Policy
    ) -> None:
        """Of a policy gradient's loss, along a direction drawn by chance."""
        self.check_slope(bench, bench.batch())

    # -- copies and files -----------------------------------------------------------------------------------

    def test_copies_are_equal_and_stay_apart(self, bench: Bench, policy: Policy) -> None:
        rollout = self.sampled(policy, self.asked(bench))
        before = self.logprobs(bench, rollout)
        copy = policy.copy("frozen")
        assert isinstance(copy, Policy)

        def says() -> Tensor:
            bench.engine.models = {**bench.engine.models, "policy": copy}
            try:
                return self.logprobs(bench, rollout)
            finally:
                bench.engine.models = {**bench.engine.models, "policy": policy}

        self.close(says(), before, "a copy of the policy says something else")
        self.move(bench, 1)
        moved = self.logprobs(bench, rollout)
        assert not torch.equal(moved, before), "other weights change nothing"
        self.close(says(), before, "a copy moves with the policy")
        copy.sync(policy)
        self.close(says(), moved, "a copy that took the weights says something else")

    def test_it_is_saved(self, policy: Policy, tmp_path: Path) -> None:
        """As safetensors, and without a number that is none."""
        folder = tmp_path / "saved"
        folder.mkdir()
        policy.save(folder)
        files = sorted(folder.rglob("*.safetensors"))
        assert files, "`save` writes weights as safetensors"
        for file in files:
            for name, weight in load_file(file).items():
                assert bool(torch.isfinite(weight).all()), f"{file.name}: {name}"

    def test_global_random_numbers_are_left_alone(self, bench: Bench) -> None:
        """Neither first weights nor responses are drawn from the generators of the whole process."""
        before = {name: look() for name, look in PROCESS.items() if "random" in name}
        made: Any = self.cls(self.config)
        made.setup()
        self.sampled(made, self.asked(bench))
        for name, state in before.items():
            assert same(PROCESS[name](), state), f"it draws from {name}, or seeds them"
