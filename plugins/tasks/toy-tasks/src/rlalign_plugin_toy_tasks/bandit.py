"""A multi-armed bandit, written as prompts with responses of one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from rlalign import Component, ComponentError, Example, Options, Rollout, Score, Task, hookimpl


class Bandit(Task):
    """Pull one of several arms. A response is the arm's number; the best policy is known in closed form."""

    class Config(Options):
        """Options of `bandit`."""

        payouts: tuple[float, ...] = Field((2.5, 2.0, 1.0), description="what each arm pays")
        pulls: int = Field(64, gt=0, le=1_000_000, description="examples in a pass over the task")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        meta = {"payouts": list(self.config.payouts)}
        return [Example(id=f"{split}-{i}", prompt="", meta=meta) for i in range(self.config.pulls)]


class BanditPayout(Component):
    """What the pulled arm pays."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([self._payout(rollout, i) for i in range(len(rollout))]))

    def _payout(self, rollout: Rollout, row: int) -> float:
        example, arm = rollout.examples[int(rollout.group_N[row])], rollout.texts[row]
        payouts = example.meta.get("payouts")
        if payouts is None:
            raise ComponentError(
                f"example `{example.id}` has no payouts; `bandit-payout` goes with `task: bandit`"
            )
        if not arm.isdigit() or int(arm) >= len(payouts):
            raise ComponentError(
                f"arm {arm!r} was pulled, and there are {len(payouts)}; set the policy's `actions`"
            )
        return float(payouts[int(arm)])
