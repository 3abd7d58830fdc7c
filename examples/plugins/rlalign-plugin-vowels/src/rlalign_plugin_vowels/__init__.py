"""A reward for vowels, and REINFORCE with a clipped ratio: a plugin for rlalign, small enough to copy."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Component, Loss, Options, Outputs, Reward, Rollout, Score, hookimpl

__all__ = ["ReinforceClipped", "Vowels", "share_of", "surrogate"]


def share_of(letters: str, text: str) -> float:
    """The share of a text's letters that are among `letters`; 0 for a text without any letter."""
    found = [c for c in text.lower() if c.isalpha()]
    return sum(c in letters for c in found) / len(found) if found else 0.0


class Vowels(Component):
    """The share of a response's letters that are vowels."""

    class Config(Options):
        """Options of `vowels`."""

        letters: str = Field("aeiou", min_length=1, description="the letters that count as vowels")

    config: Config
    bounds = (0.0, 1.0)

    def signature(self) -> str:
        return f"letters:{self.config.letters}"

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([share_of(self.config.letters, text) for text in rollout.texts]))


def surrogate(logprobs: Tensor, old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """min(ρA, clip(ρ, 1 ± clip)·A) with ρ = π/π_old, elementwise (PPO, eq. 7); and where the clip acts."""
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantage
    return torch.minimum(ratio * advantage, clipped), clipped < ratio * advantage


class ReinforceClipped(Component):
    """REINFORCE whose responses serve several epochs: PPO's clip keeps each step near the sampling policy."""

    class Config(Options):
        """Options of `reinforce-clipped`."""

        clip: float = Field(0.2, gt=0, lt=1, description="how far the probability ratio may leave 1")

    config: Config
    needs = ("logprobs", "old_logprobs")
    trains = ("policy",)
    unit = "response"
    responses = "sampled"

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N - reward.total_N.mean())

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gain_NT, acts_NT = surrogate(
            now.logprobs_NT, batch.old_logprobs_NT, batch.advantage_NT, self.config.clip
        )
        metrics = {"clipped": batch.mean_over_tokens(acts_NT.to(gain_NT.dtype))}
        return Loss(-batch.mean_over_tokens(gain_NT), metrics)
