"""Numbers as answers: the one behind `####`, as GSM8K writes it, else the last of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from pydantic import Field

from rlalign import ComponentError, Example, Options
from rlalign_plugin_text_metrics.metric import TextMetric, references

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-−+])?(?:[$€£]\s?)?(?P<top>{_UNSIGNED})"
    rf"(?:(?P<power>[eE][-+]?\d{{1,3}})(?!\w)|\s?/\s?(?P<under>{_UNSIGNED}))?"
)
_MARKED = re.compile(rf"####\s*({_NUMBER.pattern})")
_LONGEST = 300
"""Digits of a number that is still read."""


@lru_cache(2048)
def answer_of(text: str, *, marked: bool = False) -> Fraction | None:
    """The last number that stands right behind `####`, or without one the text's last number (`marked`: none then)."""
    for found in reversed(list(_MARKED.finditer(text))):
        if (value := _value(found)) is not None:
            return value
    return None if marked else next(reversed(numbers(text)), None)


def numbers(text: str) -> list[Fraction]:
    """All numbers in it: 1,234.5, −3, 2/3, 1e6; what divides by zero or has too many digits is none."""
    found = (_value(match) for match in _NUMBER.finditer(text))
    return [value for value in found if value is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST:
        return None
    value = Fraction(match["top"].replace(",", "") + (match["power"] or ""))
    if match["under"]:
        under = Fraction(match["under"].replace(",", ""))
        if not under:
            return None
        value /= under
    return -value if (match["sign"] or "+") in "-−" else value


def same(one: Fraction, other: Fraction, tolerance: float) -> bool:
    """Whether they differ by no more than a share of the second."""
    return abs(one - other) <= Fraction(tolerance) * abs(other)


class NumericAnswer(TextMetric):
    """1 if the response's answer, a number, equals a reference's: behind `####` as in GSM8K, else the last one."""

    paper = "Cobbe et al. 2021, Training verifiers to solve math word problems"
    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `numeric-answer`."""

        marked: bool = Field(
            False,
            description="only a number behind `####` is an answer; else the last number of a text without one is",
        )
        tolerance: float = Field(
            0.0,
            ge=0,
            description="how far off it may be, as a share of the reference; 0: equal (18 = 18.0 = 36/2)",
        )

    config: Config

    def signature(self) -> str:
        return f"nrefs:var|marked:{'yes' if self.config.marked else 'no'}|tolerance:{self.config.tolerance:g}"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [self._value(text, example) for text, example in zip(texts, examples, strict=True)]

    def _value(self, text: str, example: Example) -> float:
        right = [answer_of(each) for each in references(example, self.name)]
        if None in right:
            raise ComponentError(
                f"`{self.name}` compares numbers, and a reference of example `{example.id}` holds none"
            )
        said = answer_of(text, marked=self.config.marked)
        return float(
            said is not None and any(same(said, x, self.config.tolerance) for x in right if x is not None)
        )
