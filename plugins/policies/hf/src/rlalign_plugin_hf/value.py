"""Values: a linear head on a language model's states."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rlalign import Options, Policy, RLAlignError, Rollout, Value
from rlalign.world.sharding import gathered
from rlalign_plugin_hf import heads
from rlalign_plugin_hf.model import LanguageModel


class ValueHead(Value):
    """One number per step, or per prompt: a linear function, zero at first, of a trunk's state."""

    class Config(Options):
        """Options of `value-head`."""

        trunk: Literal["policy", "reference", "own"] = Field(
            "policy",
            description="whose states it reads: the policy's as it learns, the frozen reference's, "
            "or those of a copy of the policy that it trains itself",
        )
        per_prompt: bool = Field(
            False, description="one value per prompt (before its first step) instead of one per step"
        )

    config: Config

    def setup(self, policy: Policy) -> None:
        width = getattr(policy, "width", None)
        if not width:
            raise RLAlignError(
                f"`value-head` reads a language model's states; a {type(policy).__name__} has none"
            )
        self.per_prompt = self.config.per_prompt
        self.trunk = None if self.config.trunk == "own" else self.config.trunk
        dtype, device = next(policy.parameters()).dtype, policy.device
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype, device=device))
        if self.trunk is None:
            if not isinstance(policy, LanguageModel):
                raise RLAlignError("`value-head: {trunk: own}` copies a `causal-lm` or `seq2seq-lm`")
            self.body = policy.twin(changes=True)
            if policy.sharded and not policy.shares:
                with torch.no_grad():
                    for mine, its in zip(
                        self.body.state_dict().values(), policy.state_dict().values(), strict=True
                    ):
                        mine.copy_(gathered(its))
            heads.forget(self.body)

    def values(self, rollout: Rollout, features: Tensor | None = None, last: bool = False) -> Tensor:
        if self.trunk is None:
            self.body.recomputes = self.recomputes
            if self.per_prompt:
                return self._value(self.body.prompt_features(rollout))[rollout.group_N]
            return self._value(self.body.features(rollout, last))
        assert features is not None
        if self.per_prompt:
            # Rows of features come response by response: the first of each is its prompt's.
            row_M, _ = rollout.chosen
            first_N = torch.searchsorted(row_M, torch.arange(len(rollout), device=row_M.device))
            return self._value(features[first_N])
        return self._value(features)

    def _value(self, features: Tensor) -> Tensor:
        # Not a matrix product, which autocast would make half-precision, and never a sum in half precision.
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return (features.to(weight.dtype) * weight).sum(-1) + self.bias
