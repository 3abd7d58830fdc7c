"""The value of a prompt under the frozen reference: a head that attends to the states of the prompt.

Legend: N responses, G groups (prompts), S steps of a prompt, C channels.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rlalign import Options, Policy, RLAlignError, Rollout, Value


def between(logit_G: Tensor, least: float, most: float) -> Tensor:
    """[G]: least + (most − least)·σ(logit)."""
    return least + (most - least) * logit_G.sigmoid()


class AttentionValue(Value):
    """V(x): a learned query attends to the frozen reference's states of the prompt (Baheti et al. 2024).

    A linear function of what it gathers, through a sigmoid, between the smallest and the largest reward. Padding is
    masked, so that V is the same whatever else stands in a batch.
    """

    paper = (
        "Ashutosh Baheti et al., Leftover lunch: advantage-based offline reinforcement learning for language models, "
        "2024"
    )

    class Config(Options):
        """Options of `attention-value`."""

        min: float = Field(0.0, description="the smallest reward there is")
        max: float = Field(1.0, description="the largest")
        heads: int = Field(8, gt=0, description="attention heads; they divide the width of the states")
        dropout: float = Field(
            0.1, ge=0, lt=1, description="of states and of what is gathered, where `train.dropout` is on"
        )

        @model_validator(mode="after")
        def _ordered(self) -> AttentionValue.Config:
            if self.min >= self.max:
                raise ValueError("`min` is below `max`")
            return self

    config: Config
    trunk = "reference"
    reads = "prompts"
    per_prompt = True

    def setup(self, policy: Policy) -> None:
        width = getattr(policy, "width", None)
        if not width:
            raise RLAlignError(
                f"`attention-value` reads a language model's states; a {type(policy).__name__} has none"
            )
        if width % self.config.heads:
            raise RLAlignError(
                f"attention-value: {self.config.heads} heads do not divide {width}; set `heads`"
            )
        self.query = nn.Parameter(torch.randn(width))
        self.attention = nn.MultiheadAttention(width, self.config.heads, batch_first=True)
        self.out = nn.Linear(width, 1)
        self.drop = nn.Dropout(self.config.dropout)
        self.to(device=policy.device, dtype=next(policy.parameters()).dtype)

    def values(
        self, rollout: Rollout, features: tuple[Tensor, Tensor] | None = None, last: bool = False
    ) -> Tensor:
        assert features is not None
        states_GSC, real_GS = features
        with torch.autocast(states_GSC.device.type, enabled=False):
            h_GSC = self.drop(states_GSC.to(self.query.dtype))
            query_G1C = self.query.expand(len(h_GSC), 1, -1)
            found_G1C, _ = self.attention(
                query_G1C, h_GSC, h_GSC, key_padding_mask=~real_GS, need_weights=False
            )
            logit_G = self.out(self.drop(found_G1C[:, 0]))[:, 0]
            value_G = between(logit_G, self.config.min, self.config.max)
        return value_G[rollout.group_N]
