"""An algorithm for rlalign: REINFORCE, each response beside the others of its prompt, with an entropy bonus."""

from __future__ import annotations

import torch
from pydantic import Field
from rlalign import Batch, Component, Loss, Options, Outputs, Reward, Rollout, hookimpl
from torch import Tensor

__all__ = ["ExampleName", "above_the_others"]

# Letters at the end of a name are the shape of a tensor: N responses, T steps.


def above_the_others(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """[N]: each reward, less the mean of the other rewards of its group (at least two)."""
    count_G = torch.bincount(group_N)
    sum_G = reward_N.new_zeros(len(count_G)).index_add(0, group_N, reward_N)
    others_N = (sum_G[group_N] - reward_N) / (count_G[group_N] - 1)
    return reward_N - others_N


class ExampleName(Component):
    """REINFORCE against the mean of the prompt's other responses, with an entropy bonus."""

    # For `rlalign plugins example-name`: where the method was published.
    paper = "Wouter Kool et al., Buy 4 REINFORCE samples, get a baseline for free!, 2019"

    # What the YAML may say, as a pydantic model: types and bounds are checked before anything runs, and
    # `rlalign plugins example-name` prints the descriptions. An option without a default must be given.
    class Config(Options):
        """Options of `example-name`."""

        entropy: float = Field(0.01, ge=0, description="the weight of the entropy bonus")

    config: Config

    # What the core must provide. docs/hooks.md lists all that can be declared.
    needs = ("logprobs", "entropy")  # `now` has `logprobs_NT` and `entropy_NT`, and nothing else
    trains = ("policy",)  # whose weights the loss moves; all others stay as they are, to the bit
    unit = "response"  # the loss of some responses can be computed without the rest of their group
    responses = "sampled"  # where they come from unless the pipeline says otherwise
    min_samples = 2  # a prompt's; alone, a response has no others

    # Once an iteration, on all its responses: what is learned from each. `reward.total_N` is the weighted sum of the
    # pipeline's rewards, `reward.parts` has each by name. No gradient flows here.
    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, above_the_others(reward.total_N, rollout.group_N))

    # For every piece of a step, of any size: `batch` is data, `now` what the policy says of it, with gradient. Every
    # mean goes through `batch.mean_over_…`, which divides by the count of the whole step, so that the pieces add up.
    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gain = batch.mean_over_tokens(batch.advantage_NT * now.logprobs_NT)
        entropy = batch.mean_over_tokens(now.entropy_NT)
        return Loss(-gain - self.config.entropy * entropy, metrics={"bonus": entropy.detach()})
