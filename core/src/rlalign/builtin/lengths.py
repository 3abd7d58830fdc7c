"""Rewards that look at a response's length: `overlong`, and the wrapper `per-length`."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator

from rlalign.builtin.rewards import Scores
from rlalign.data.batch import Score
from rlalign.data.rollout import TURN, Rollout
from rlalign.data.settings import Options
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run


class Overlong(Component):
    """0 up to a length, then less with every token, −1 at the longest and for whatever did not end.

    The soft overlong punishment of DAPO (equation 13). Length is in tokens, the one that ends a response included; of
    an episode it is that of all its turns, without what is told in between.
    """

    paper = "Yu et al. 2025, DAPO: An Open-Source LLM Reinforcement Learning System at Scale, equation 13"
    bounds = (-1.0, 0.0)

    class Config(Options):
        """Options of `overlong`."""

        longest: int | None = Field(
            None,
            gt=0,
            description="tokens at which it is −1, the paper's L_max; null: `generation.max_new_tokens`",
        )
        cache: int | None = Field(
            None,
            gt=0,
            description="tokens over which it falls from 0 to −1, the paper's L_cache; null: a fifth of the longest, "
            "as the paper's 4,096 of 20,480",
        )

        @model_validator(mode="after")
        def _fits(self) -> Overlong.Config:
            if self.longest is not None and self.cache is not None and self.cache > self.longest:
                raise ValueError("`cache` is part of `longest`, so it cannot be more")
            return self

    config: Config

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        if self.config.longest is None and TURN in rollout.columns:
            raise ComponentError(
                f"`{self.name}` would take `generation.max_new_tokens` as the longest, which is that of a turn, and "
                "these responses are episodes of several; say how many tokens of a whole one are too many: "
                f"`{self.name}: {{longest: …}}`"
            )
        longest = self.config.longest or run.generation.max_new_tokens
        cache = min(longest, self.config.cache or max(1, longest // 5))
        value_N = ((longest - cache - rollout.mask_NT.sum(1)) / cache).clamp(-1.0, 0.0)
        return Score(torch.where(rollout.finished_N, value_N, -1.0))


class PerLength(Component):
    """Scores over the response's length in tokens.

    The length counts every token of the response as the policy wrote it, the one that ends it included, before the
    task's `postprocess`, and nothing that an environment said. A score paid step by step is divided at every step, so
    that its sum becomes its mean.
    """

    @hookimpl(wrapper=True)
    def reward(self, rollout: Rollout) -> Scores:
        scores = yield
        length_N = rollout.mask_NT.sum(1)
        return [
            replace(s, value=s.value / (length_N if s.value.ndim == 1 else length_N[:, None])) for s in scores
        ]
