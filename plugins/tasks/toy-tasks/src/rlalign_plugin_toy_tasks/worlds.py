"""What worlds of prompts and scored responses share: their options, what is measured, and an exact reward's frame.

A world knows what each prompt asks for, so a response is scored by reading it, without a model. Logged responses are
a careless writer's, who knows the language and now and then forgets or mistakes what was asked; references are not.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from pydantic import Field

from rlalign import Component, ComponentError, Example, Options, Rollout, Score, Task, hookimpl
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.texts import distinct

T = TypeVar("T")


class World(Task):
    """A task whose examples are made one by one from a stream of random numbers."""

    language: ClassVar[str]
    """The component's name, which examples carry in `meta`."""

    class Config(Options):
        """What every world can be told."""

        size: int = Field(512, gt=0, le=1_000_000, description="examples in the split `train`")
        held_out: int = Field(256, gt=0, le=1_000_000, description="examples in every other split")
        responses: int = Field(4, gt=0, description="logged responses an example, with their scores")
        seed: int = Field(0, ge=0, description="another number: other texts, of the same language")

    config: Config
    generation = {"temperature": 1.0}

    def examples(self, split: str) -> Sequence[Example]:
        count = self.config.size if split == "train" else self.config.held_out
        rng = random.Random(f"{self.language} {self.config.seed} {split}")
        return [self.example(f"{split}-{i}", rng) for i in range(count)]

    def example(self, id: str, rng: random.Random) -> Example:
        """The next example."""
        raise NotImplementedError

    def fingerprint(self, split: str) -> str:
        return f"{self.language} 1 {self.config.model_dump_json()} {split}"

    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        return {"distinct-2": distinct(rollout.texts, 2), "distinct": len(set(rollout.texts)) / len(rollout)}


class ExactReward(Component):
    """A reward between 0 and 1 that is read off a response and its example."""

    class Config(Options):
        """What every exact reward can be told."""

        grammatical: bool = Field(False, description="a response outside the language earns nothing")

    config: Config
    bounds = (0.0, 1.0)

    task: ClassVar[str]
    """The task it goes with."""
    reads: ClassVar[str]
    """What of `meta` it reads."""
    language: ClassVar[Grammar]

    def value(self, example: Example, text: str) -> float:
        """What a response is worth."""
        raise NotImplementedError

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        examples = [rollout.examples[g] for g in rollout.group_N.tolist()]
        return Score(torch.tensor(list(map(self._checked, examples, rollout.texts))))

    def _checked(self, example: Example, text: str) -> float:
        if not example.meta.get(self.reads):
            raise ComponentError(
                f"example `{example.id}` has no {self.reads} (meta: {self.reads}); `{self.name}` goes with "
                f"`task: {self.task}`"
            )
        if self.config.grammatical and not self.language.accepts(text):
            return 0.0
        return self.value(example, text)


# -- drawing ----------------------------------------------------------------------------------------
# By `Random.random` alone, whose numbers Python promises to keep between versions.


def happens(chance: float, rng: random.Random) -> bool:
    """True so often."""
    return rng.random() < chance


def one_of(things: Sequence[T], rng: random.Random) -> T:
    """One of them, each as likely."""
    return things[int(rng.random() * len(things))]


def shuffled(things: Iterable[T], rng: random.Random) -> list[T]:
    """Them in random order."""
    keyed = sorted(((rng.random(), i, thing) for i, thing in enumerate(things)), key=lambda row: row[:2])
    return [thing for _, _, thing in keyed]


def other_than(things: Sequence[T], but: T, rng: random.Random) -> T:
    """One of them, and not this one."""
    return one_of([thing for thing in things if thing != but], rng)
