"""A sampler for tests: a copy of the policy, by the core's own loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlalign import Example, Policy, Response, Rollout, Sampler, Sampling, sample, sampled_rollout


class Copy(Sampler):
    """Samples by the core's loop with a copy of the policy, and hands tokens over as lists."""

    concurrent = True

    def take(self, policy: Policy) -> None:
        self.copy = policy.copy("frozen")

    def numbers(self, seeds: Sequence[Sequence[int]], steps: int) -> torch.Tensor:
        made = [[torch.Generator().manual_seed(seed) for seed in row] for row in seeds]
        return torch.stack([torch.stack([torch.rand(steps, generator=one) for one in row]) for row in made])

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        found = sample(self.copy, examples, how, self.numbers(seeds, how.max_new_tokens))
        return sampled_rollout(policy, examples, how, [self.response(found, n) for n in range(len(found))])

    def response(self, found: Rollout, row: int) -> Response:
        steps, allowed = int(found.length_N[row]), None
        if found.allowed is not None:
            left_TV = found.allowed.mask(torch.full((steps,), row), torch.arange(steps))
            allowed = [step.nonzero()[:, 0].tolist() for step in left_TV]
        tokens, logprobs = found.actions_NT[row, :steps].tolist(), found.logprobs_NT[row].tolist()[:steps]
        return Response(tokens, logprobs, bool(found.finished_N[row]), allowed)
