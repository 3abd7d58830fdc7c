"""Whether a response matches a regular expression, within a time: a search that takes longer is given up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import regex
import torch
from pydantic import Field, field_validator

from rlalign import Example, Options, Rollout, Score, hookimpl
from rlalign_plugin_text_metrics.metric import TextMetric

SECONDS = 0.1
"""Processor time that one search may take."""


@lru_cache(256)
def compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)


def matches(pattern: str, text: str, *, whole: bool = False, seconds: float = SECONDS) -> bool | None:
    """Whether the text holds a match, or is one; None: that took too long to find out."""
    search = compiled(pattern).fullmatch if whole else compiled(pattern).search
    try:
        return search(text, timeout=seconds) is not None
    except TimeoutError:
        return None


class Regex(TextMetric):
    """1 if a regular expression matches within the response, else 0."""

    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `regex`."""

        pattern: str = Field(
            description="a regular expression, of Python's and of the library `regex`; `(?i)` at its start: any case"
        )
        whole: bool = Field(
            False, description="it must match the response from its first to its last character"
        )
        seconds: float = Field(
            SECONDS,
            gt=0,
            le=60,
            description="processor time, the whole process's, of one search: what takes longer is given up and counts "
            "as no match; `regex/given_up` is their share",
        )

        @field_validator("pattern")
        @classmethod
        def _is_one(cls, pattern: str) -> str:
            try:
                compiled(pattern)
            except regex.error as error:
                raise ValueError(f"no regular expression: {error}") from None
            return pattern

    config: Config

    def signature(self) -> str:
        return f"whole:{'yes' if self.config.whole else 'no'}|regex:{regex.__version__}"

    def found(self, texts: Sequence[str]) -> list[bool | None]:
        c = self.config
        return [matches(c.pattern, text, whole=c.whole, seconds=c.seconds) for text in texts]

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [float(bool(each)) for each in self.found(texts)]

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        found = self.found(rollout.texts)
        value_N, given_up_N = (
            torch.tensor(each, dtype=torch.float64)
            for each in ([float(bool(x)) for x in found], [float(x is None) for x in found])
        )
        return Score(value_N, metrics={"given_up": given_up_N})
