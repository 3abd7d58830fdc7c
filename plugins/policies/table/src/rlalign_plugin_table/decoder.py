"""A table's responses in progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlalign_plugin_table import Table


class TableDecoder:
    """What the state of each row depends on."""

    def __init__(self, policy: Table, prompt_n: Tensor) -> None:
        self.policy = policy
        self.prompt_n = prompt_n
        self.step_n = torch.zeros_like(prompt_n)
        self.previous_n = torch.full_like(prompt_n, -1)
        self.turn_n = torch.zeros_like(prompt_n)

    def states(self) -> Tensor:
        """[n]: each one's row of the table."""
        return self.policy._state(self.prompt_n, self.step_n, self.previous_n, self.turn_n)

    def logits(self) -> Tensor:
        return self.policy.table[self.states()]

    def advance(self, tokens_n: Tensor) -> None:
        self.step_n = self.step_n + 1
        said_n = tokens_n >= len(self.policy.names)
        self.prompt_n = torch.where(said_n, tokens_n - len(self.policy.names), self.prompt_n)
        self.previous_n = torch.where(said_n, self.previous_n, tokens_n)
        self.turn_n = self.turn_n + said_n

    def select(self, rows: Tensor) -> None:
        self.prompt_n, self.step_n, self.previous_n, self.turn_n = (
            self.prompt_n[rows],
            self.step_n[rows],
            self.previous_n[rows],
            self.turn_n[rows],
        )
