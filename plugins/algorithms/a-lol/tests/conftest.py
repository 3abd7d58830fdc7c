"""A value that says what it is told, so that advantages are those of the golden file."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Options, Policy, Rollout, Value


class GivenValue(Value):
    """V(x) of prompt i is the i-th number; nothing to fit."""

    class Config(Options):
        """Options of `given-value`."""

        values: tuple[float, ...] = Field(description="by prompt")

    config: Config
    per_prompt = True

    def setup(self, policy: Policy) -> None:
        self.register_buffer("given", torch.tensor(self.config.values, dtype=next(policy.parameters()).dtype))

    def values(self, rollout: Rollout, features: Any = None, last: bool = False) -> Tensor:
        return self.given[[int(str(e.prompt)) for e in rollout.examples]][rollout.group_N]


class FreeValue(Value):
    """V(x) of each prompt is a free number, as the mean of nothing: 0 at first."""

    class Config(Options):
        """Options of `free-value`."""

        prompts: int = Field(6, gt=0, description="how many there are")

    config: Config
    per_prompt = True

    def setup(self, policy: Policy) -> None:
        self.free = torch.nn.Parameter(
            torch.zeros(self.config.prompts, dtype=next(policy.parameters()).dtype)
        )

    def values(self, rollout: Rollout, features: Any = None, last: bool = False) -> Tensor:
        return self.free[[int(str(e.prompt)) for e in rollout.examples]][rollout.group_N]
