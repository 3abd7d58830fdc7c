"""Write a date as dddd-dd-dd: RL4LMs' second synthetic task.

The logged responses write dates in several ways, one of which is the wanted one: what is learned from them
has it now and then, and leaves something to align.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from pydantic import Field

from rlalign import Component, Example, Options, Rollout, Score, Task, hookimpl

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
WAYS = ("{y:04}-{m:02}-{d:02}", "{d:02}-{m:02}-{y:04}", "{d}-{m}-{y}", "{y} {m} {d}", "{m:02}-{d:02}")
"""How the logged responses write a date. The first is the wanted one."""


def has_date(text: str) -> bool:
    """RL4LMs' `dates`: whether the text holds four digits, two and two, with hyphens between."""
    return _DATE.search(text) is not None


class ToyDates(Task):
    """Write a date. Every prompt is the same."""

    paper = (
        "Rajkumar Ramamurthy et al., Is reinforcement learning (not) for natural language processing: benchmarks, "
        "baselines, and building blocks for natural language policy optimization, 2023"
    )

    class Config(Options):
        """Options of `toy-dates`."""

        prompt: str = Field("", description="the prompt of every example")
        size: int = Field(50, gt=0, le=1_000_000, description="examples in each split")
        responses: int = Field(4, ge=0, description="logged responses an example: dates written in some way")
        spaced: bool = Field(False, description="a space between all characters of the logged responses")
        seed: int = Field(0, ge=0, description="another number: other dates")

    config: Config
    generation = {"temperature": 1.0}

    def examples(self, split: str) -> Sequence[Example]:
        rng = random.Random(f"toy-dates {self.config.seed} {split}")
        return [self._example(f"{split}-{i}", rng) for i in range(self.config.size)]

    def _example(self, id: str, rng: random.Random) -> Example:
        texts = [self._date(rng) for _ in range(self.config.responses)]
        return Example(
            id=id,
            prompt=self.config.prompt,
            responses=tuple(" ".join(text) if self.config.spaced else text for text in texts),
            scores=tuple(float(has_date(text)) for text in texts),
        )

    def _date(self, rng: random.Random) -> str:
        year, month, day = (
            1900 + int(rng.random() * 200),
            1 + int(rng.random() * 12),
            1 + int(rng.random() * 28),
        )
        return WAYS[int(rng.random() * len(WAYS))].format(y=year, m=month, d=day)


class Dates(Component):
    """1 if the text holds a date dddd-dd-dd, else 0."""

    paper = (
        "Rajkumar Ramamurthy et al., Is reinforcement learning (not) for natural language processing: benchmarks, "
        "baselines, and building blocks for natural language policy optimization, 2023"
    )

    class Config(Options):
        """Options of `dates`."""

        spaced: bool = Field(
            False, description="read the text without its spaces (a table's text has one between all actions)"
        )

    config: Config

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        texts = [text.replace(" ", "") if self.config.spaced else text for text in rollout.texts]
        return Score(torch.tensor([float(has_date(text)) for text in texts]))
