"""A metric for rlalign: how many of all n-grams are different ones."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field
from rlalign import Component, Options, Rollout, hookimpl

__all__ = ["ExampleName", "distinct"]


def distinct(texts: Iterable[str], n: int) -> float:
    """The number of different n-grams of all texts, over that of all n-grams; 0 where there are none."""
    found: list[tuple[str, ...]] = []
    for text in texts:
        words = text.split()
        found += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(found)) / len(found) if found else 0.0


class ExampleName(Component):
    """The share of all n-grams that are different ones."""

    # For `rlalign plugins example-name`: where the method was published.
    paper = "Jiwei Li et al., A diversity-promoting objective function for neural conversation models, 2016"

    # What the YAML may say, as a pydantic model: types and bounds are checked before anything runs, and
    # `rlalign plugins example-name` prints the descriptions. An option without a default must be given.
    class Config(Options):
        """Options of `example-name`."""

        n: int = Field(2, gt=0, description="words of an n-gram")

    config: Config

    def signature(self) -> str:
        """What the number depends on beside the texts; it is written beside every figure."""
        return f"n:{self.config.n}"

    # A hook is a method with this mark. It names the arguments it wants; docs/hooks.md lists them all.
    # A rollout holds N responses: `rollout.texts`, and in `rollout.answered` the N examples they answer.
    # What is returned is logged as `eval/example-name/distinct`. This is a number of all texts together; a metric
    # that is the mean of a number a response is a `reward` hook, which can be learned from, too.
    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        return {"distinct": distinct(rollout.texts, self.config.n)}
