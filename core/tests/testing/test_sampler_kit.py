"""The tests that every sampler inherits: a good one passes them, and each planted fault is found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Example, Policy, Response, Rollout, Sampler, Sampling, sampled_rollout
from rlalign.testing import Bench, SamplerTests

from ..copying import Copy


class TestCopy(SamplerTests):
    component = Copy


class Full(Copy):
    """Gives log-probs of what there was before a truncation."""

    def response(self, found: Rollout, row: int) -> Response:
        right = super().response(found, row)
        return right._replace(logprobs=found.full_logprobs_NT[row].tolist()[: len(right.tokens)])


class Old(Copy):
    """Takes weights once."""

    def take(self, policy: Policy) -> None:
        if not hasattr(self, "copy"):
            super().take(policy)


class Warm(Copy):
    """Forgets the temperature, and says what the policy says."""

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        warm = how.model_copy(update={"temperature": 1.6})
        found = super().sample(policy, examples, warm, seeds)
        return sampled_rollout(policy, examples, how, [self.response(found, n) for n in range(len(found))])


class Batched(Copy):
    """Draws by the place in the request."""

    def numbers(self, seeds: Sequence[Sequence[int]], steps: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seeds[0][0])
        return torch.rand(len(seeds), len(seeds[0]), steps, generator=generator)


class Loud(Copy):
    """Draws from the global generator."""

    def numbers(self, seeds: Sequence[Sequence[int]], steps: int) -> torch.Tensor:
        torch.rand(1)
        return super().numbers(seeds, steps)


class Open(Copy):
    """Says that nothing ended by itself."""

    def response(self, found: Rollout, row: int) -> Response:
        return super().response(found, row)._replace(finished=False)


class Vague(Copy):
    """Says what it lacks in its own words."""

    def lacks(self, how: Sampling) -> Any:
        if how.min_p:
            yield "it does not know min_p"


class Shared(Copy):
    """Seeds the global generator, which others seed too."""

    def numbers(self, seeds: Sequence[Sequence[int]], steps: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0][0])
            time.sleep(0.05)
            return torch.rand(len(seeds), len(seeds[0]), steps)


class Borrows(Copy):
    """Samples with the policy's own weights."""

    def take(self, policy: Policy) -> None:
        self.copy = policy

    def numbers(self, seeds: Sequence[Sequence[int]], steps: int) -> torch.Tensor:
        time.sleep(0.05)
        return super().numbers(seeds, steps)


class Broken(Copy):
    """Cannot be closed before it was opened."""

    def close(self) -> None:
        del self.copy


FAULTS = {
    Full: "log_probs_are_those",
    Old: "weights_of_now",
    Warm: "as_often",
    Batched: "equal_seeds",
    Loud: "global_random",
    Open: "what_was_asked_for",
    Vague: "begins_with_an_option",
    Shared: "while_the_policy_learns",
    Borrows: "while_the_policy_learns",
    Broken: "closed_before",
}


@pytest.mark.parametrize("faulty", FAULTS, ids=lambda cls: cls.__name__)
def test_a_fault_is_found(faulty: type[Sampler], tmp_path: Path) -> None:
    class It(SamplerTests):
        component = faulty

    it = It()
    (test,) = [name for name in dir(it) if name.startswith("test_") and FAULTS[faulty] in name]
    given = () if faulty is Broken else (Bench(tmp_path, it.whole_pipeline(), it.extra),)
    with pytest.raises((AssertionError, AttributeError)):
        getattr(it, test)(*given)


def test_one_that_repeats_nothing_says_so(tmp_path: Path) -> None:
    class It(SamplerTests):
        component, exact = Batched, False

    it = It()
    with pytest.raises(pytest.skip.Exception, match="`exact` is False"):
        it.test_equal_seeds_give_equal_tokens(Bench(tmp_path, it.whole_pipeline(), it.extra))
