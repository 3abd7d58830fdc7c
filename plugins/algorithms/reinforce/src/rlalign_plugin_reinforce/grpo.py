"""GRPO and what grew from it: Dr. GRPO, DAPO, GSPO, CISPO."""

from __future__ import annotations

from rlalign_plugin_reinforce.family import PolicyGradient
from rlalign_plugin_reinforce.options import Family, preset


class GRPO(PolicyGradient):
    """Group relative policy optimisation: a reward less its group's mean, over the group's deviation; PPO's clip."""

    equation = (
        "−min(ρ_t A, clip(ρ_t, 1−ε, 1+ε) A) + β KL(π ‖ π_ref), ρ_t = π/π_old, "
        "A = (R − mean of the group) / deviation of the group"
    )

    paper = (
        "Zhihong Shao et al., DeepSeekMath: pushing the limits of mathematical reasoning in open language models, "
        "2024"
    )

    @preset(baseline="group", scale="group", ratio="token", clip=(0.2, 0.2), mean="response-means", kl=0.04)
    class Config(Family):
        """Options of `grpo`."""


class DrGRPO(PolicyGradient):
    """GRPO done right: no deviation, no length of the response divides anything; no KL."""

    equation = (
        "−min(ρ_t A, clip(ρ_t, 1−ε, 1+ε) A), ρ_t = π/π_old, A = R − mean of the group; summed over tokens"
    )

    paper = "Zichen Liu et al., Understanding R1-Zero-like training: a critical perspective, 2025"

    @preset(scale="none", mean="constant", kl=0.0)
    class Config(GRPO.Config):
        """Options of `dr-grpo`."""


class DAPO(PolicyGradient):
    """DAPO's loss: the ratio may rise further than fall, a mean over all tokens, no KL.

    Its dynamic sampling is `drop-ties` below it, with `train.refill`; its soft punishment of long responses is the
    reward `overlong`.
    """

    equation = (
        "−min(ρ_t A, clip(ρ_t, 1−ε, 1+ε') A), ρ_t = π/π_old, "
        "A = (R − mean of the group) / deviation of the group; a mean over all tokens"
    )

    paper = "Qiying Yu et al., DAPO: an open-source LLM reinforcement learning system at scale, 2025"

    @preset(clip=(0.2, 0.28), mean="tokens", kl=0.0)
    class Config(GRPO.Config):
        """Options of `dapo`."""


class GSPO(PolicyGradient):
    """Group sequence policy optimisation: the ratio of whole responses, its geometric mean over tokens, clipped."""

    equation = (
        "−min(ρ A, clip(ρ, 1−ε, 1+ε') A), ρ = (π(y)/π_old(y))^(1/|y|), "
        "A = (R − mean of the group) / deviation of the group"
    )

    paper = "Chujie Zheng et al., Group sequence policy optimization, 2025"

    @preset(ratio="geometric", clip=(3e-4, 4e-4), kl=0.0)
    class Config(GRPO.Config):
        """Options of `gspo`."""


class CISPO(PolicyGradient):
    """Clipped importance-sampling weights: the ratio is a constant weight of log π, clipped above; no KL."""

    equation = (
        "−sg(min(ρ_t, 1+ε')) A log π(y_t), ρ_t = π/π_old, "
        "A = (R − mean of the group) / deviation of the group"
    )

    paper = "MiniMax, MiniMax-M1: scaling test-time compute efficiently with lightning attention, 2025"

    @preset(clip=(None, 4.0), clipped="weight", mean="tokens", kl=0.0)
    class Config(GRPO.Config):
        """Options of `cispo`."""
