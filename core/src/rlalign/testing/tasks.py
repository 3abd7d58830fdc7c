"""A task and two rewards for policies over numbered tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from rlalign.data.batch import Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.interface.component import Component, Task
from rlalign.interface.hooks import hookimpl


class Numbers(Task):
    """Prompts `0` … `size − 1`, each with some logged responses of random tokens and random scores."""

    class Config(Options):
        """Options of `numbers`."""

        size: int = Field(6, gt=0, description="examples in each split")
        prompts: int = Field(6, gt=0, description="different prompts among them")
        logged: tuple[int, ...] = Field(
            (1, 3, 4, 2, 5, 3), description="logged responses of each example, in turn"
        )
        longest: int = Field(6, gt=0, description="tokens of the longest logged response")
        vocabulary: int = Field(10, gt=0, description="tokens logged responses are made of")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        return [self.example(i) for i in range(self.config.size)]

    def example(self, index: int) -> Example:
        """One example; the same each time."""
        c = self.config
        generator = torch.Generator().manual_seed(index)
        count = c.logged[index % len(c.logged)]
        lengths = torch.randint(1, c.longest + 1, (count,), generator=generator).tolist()
        tokens = [torch.randint(c.vocabulary, (n,), generator=generator).tolist() for n in lengths]
        return Example(
            id=str(index),
            prompt=str(index % c.prompts),
            responses=tuple(" ".join(map(str, t)) for t in tokens),
            scores=tuple(torch.randn(count, generator=generator).tolist()),
        )


class TokenSum(Component):
    """The sum of a response's tokens, over ten."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([sum(map(float, text.split())) / 10 for text in rollout.texts]))


class Length(Component):
    """The number of words of a response."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([float(len(text.split())) for text in rollout.texts]))
