"""How long a response is, or how near to a wanted length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator

from rlalign import Component, Options, Rollout, Score, hookimpl


def nearness(length: float, least: float | None, most: float | None) -> float:
    """1 within the bounds; below, the share of `least` that is there; above, 0 from twice `most` on."""
    if least is not None and length < least:
        return length / least
    if most is not None and length > most:
        return max(0.0, 2 - length / most)
    return 1.0


class TextLength(Component):
    """How long a response is; with `least` or `most`, how near to that it is, between 0 and 1."""

    class Config(Options):
        """Options of `text-length`."""

        unit: Literal["words", "characters", "tokens"] = Field(
            "words",
            description="words: parted by white space; tokens: the policy's, the one that ends a response among them",
        )
        least: int | None = Field(None, ge=1, description="from here on a response is long enough")
        most: int | None = Field(
            None,
            ge=1,
            description="up to here a response is short enough; the same as `least`: one wanted length",
        )

        @model_validator(mode="after")
        def _ordered(self) -> TextLength.Config:
            if self.least is not None and self.most is not None and self.least > self.most:
                raise ValueError("`least` is above `most`")
            return self

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        wanted = self.config.least is not None or self.config.most is not None
        self.bounds = (0.0, 1.0 if wanted else None)

    def signature(self) -> str:
        c = self.config
        return f"unit:{c.unit}|least:{c.least or 'no'}|most:{c.most or 'no'}"

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        c = self.config
        found = self._lengths(rollout)
        if c.least is None and c.most is None:
            return Score(torch.tensor(found, dtype=torch.float64))
        near = [nearness(length, c.least, c.most) for length in found]
        length_N = torch.tensor(found, dtype=torch.float64)
        return Score(torch.tensor(near, dtype=torch.float64), metrics={c.unit: length_N})

    def _lengths(self, rollout: Rollout) -> Sequence[int]:
        if self.config.unit == "tokens":
            return list(map(int, rollout.mask_NT.sum(1).tolist()))
        if self.config.unit == "words":
            return [len(text.split()) for text in rollout.texts]
        return [len(text) for text in rollout.texts]
