"""Stands in for a model where texts that are given are measured, and no model is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from rlalign.data.example import Example
from rlalign.data.rollout import Rollout, logged_rollout
from rlalign.errors import ConfigError
from rlalign.interface.policy import Policy


class NoModel(Policy):
    """Reads any text, a byte a token; it neither writes one nor says how probable it is."""

    def setup(self) -> None:
        self.nothing = nn.Parameter(torch.zeros(()))

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(1, dtype=torch.long) for _ in examples)

    def encode(self, examples: Sequence[Example]) -> Rollout:
        rows = [
            ([*text.encode("utf-8", "surrogatepass"), 0], e.finished[j] if e.finished else True)
            for e in examples
            for j, text in enumerate(e.responses)
        ]
        return logged_rollout(examples, self.prompts(examples), rows, like=self.nothing)

    def text(self, actions_T: Tensor) -> str:
        return bytes(actions_T.tolist()[:-1]).decode("utf-8", "replace")

    def decoder(self, inputs: Sequence[Tensor], k: int) -> NoReturn:
        _refuse("answer")

    def features(self, rollout: Rollout, last: bool = False) -> NoReturn:
        _refuse("say how probable a response is")

    def head(self, features: Tensor) -> NoReturn:
        _refuse("say how probable a response is")

    def copy(self, role: Literal["frozen", "lagging", "value"]) -> NoReturn:
        _refuse("be compared with")

    def save(self, folder: Path) -> NoReturn:
        _refuse("be saved")


def _refuse(what: str) -> NoReturn:
    raise ConfigError(
        f"no model is opened, only texts that are given, so there is none to {what}; name a model"
    )
