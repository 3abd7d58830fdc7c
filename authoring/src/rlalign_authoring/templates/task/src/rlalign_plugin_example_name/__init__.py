"""A task for rlalign: add two numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import Field
from rlalign import ConfigError, Example, Options, Task

__all__ = ["ExampleName", "share"]


def share(text: str) -> float:
    """A number in [0, 1) that follows from the text alone; Python's `hash` differs from process to process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


class ExampleName(Task):
    """Add two numbers."""

    # What the YAML may say, as a pydantic model: types and bounds are checked before anything runs, and
    # `rlalign plugins example-name` prints the descriptions. A file is `path: Path = Field(strict=False, …)`;
    # in the YAML it is relative to the pipeline.
    class Config(Options):
        """Options of `example-name`."""

        most: int = Field(9, ge=1, le=999, description="the largest number")
        held_out: float = Field(0.25, gt=0, lt=1, description="about which share of the sums makes up `val`")

    config: Config
    generation = {"greedy": True, "max_new_tokens": 4}  # how an evaluation decodes, unless the pipeline says

    # In a fixed order, the same in every process. What stands in one split stands in no other.
    def examples(self, split: str) -> Sequence[Example]:
        if split not in ("train", "val"):
            raise ConfigError(f"example-name: there is no split `{split}` (splits: train, val)")
        numbers = range(self.config.most + 1)
        return [self._example(a, b) for a in numbers for b in numbers if self._split_of(a, b) == split]

    def _split_of(self, a: int, b: int) -> str:
        return "val" if share(f"{a}+{b}") < self.config.held_out else "train"

    # `prompt` is text, or a list of chat messages; `references` are what rewards and metrics compare with. Data that
    # carries responses gives them, and their scores if it has some, as `responses` and `scores`.
    def _example(self, a: int, b: int) -> Example:
        return Example(id=f"{a}+{b}", prompt=f"{a} + {b} =", meta={"references": [str(a + b)]})

    # What rewards and metrics read of a response.
    def postprocess(self, text: str) -> str:
        return text.partition("\n")[0].strip()
