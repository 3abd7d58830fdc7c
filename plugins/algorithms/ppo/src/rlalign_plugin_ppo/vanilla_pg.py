"""Vanilla policy gradient (Ahmadian et al. 2024): what was paid from each token on, less a learned value."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlalign_plugin_ppo.a2c import A2C


class VanillaPG(A2C):
    """Vanilla policy gradient: A2C whose advantages are Monte-Carlo returns less the value (λ = 1), no bootstrap."""

    equation = "−A_t log π(y_t) + c (V_t − return_t)², A_t = return_t − V_t"

    paper = (
        "Arash Ahmadian et al., Back to basics: revisiting REINFORCE style optimization for learning from human "
        "feedback in LLMs, 2024"
    )

    class Config(A2C.Config):
        """Options of `vanilla-pg`."""

        lam: float = Field(1.0, ge=0, le=1, description=str(A2C.Config.model_fields["lam"].description))
        truncated: Literal["bootstrap", "terminal"] = Field(
            "terminal", description=str(A2C.Config.model_fields["truncated"].description)
        )

    config: Config
