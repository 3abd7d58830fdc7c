"""REINFORCE and what grew from it: RLOO, REINFORCE++."""

from __future__ import annotations

from rlalign_plugin_reinforce.family import PolicyGradient
from rlalign_plugin_reinforce.options import Family, preset


class Reinforce(PolicyGradient):
    """REINFORCE with a moving-average baseline: the mean reward of all responses of earlier iterations."""

    equation = "−(R − mean of all earlier R) Σ_t log π(y_t)"

    paper = (
        "Ronald J. Williams, Simple statistical gradient-following algorithms for connectionist reinforcement "
        "learning, 1992"
    )

    @preset(baseline="past")
    class Config(Family):
        """Options of `reinforce`."""


class RLOO(PolicyGradient):
    """REINFORCE leave-one-out: the baseline of a response is the mean reward of its siblings."""

    equation = "−(R_i − mean of R_j over j ≠ i) Σ_t log π(y_i,t)"

    paper = (
        "Arash Ahmadian et al., Back to basics: revisiting REINFORCE style optimization for learning from human "
        "feedback in LLMs, 2024"
    )

    @preset(baseline="others")
    class Config(Family):
        """Options of `rloo`."""


class ReinforcePP(PolicyGradient):
    """REINFORCE++: each token is paid for what came from it on, standardised over all tokens; PPO's clip."""

    equation = (
        "−min(ρ_t A_t, clip(ρ_t, 1−ε, 1+ε) A_t), A_t = the reward from t on, standardised over all tokens"
    )

    paper = (
        "Jian Hu et al., REINFORCE++: an efficient RLHF algorithm with robustness to both prompt and reward models, "
        "2025"
    )

    @preset(
        credit="to-go",
        scale="batch",
        bessel=False,
        delta=1e-8,
        ratio="token",
        clip=(0.2, 0.2),
        mean="tokens",
    )
    class Config(Family):
        """Options of `reinforce-pp`."""


class ReinforcePPBaseline(PolicyGradient):
    """REINFORCE++ with baseline: the reward less its group's mean, standardised over all tokens; PPO's clip."""

    equation = "−min(ρ_t A, clip(ρ_t, 1−ε, 1+ε) A), A = R − mean of the group, standardised over all tokens"

    paper = ReinforcePP.paper

    @preset(baseline="group", estimator="k2")
    class Config(ReinforcePP.Config):
        """Options of `reinforce-pp-baseline`."""
