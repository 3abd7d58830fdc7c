"""Examples that are loaded when they are asked for: without some, one sequence after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import pytest

from rlalign import ConfigError, Example, Joined, LazyExamples
from rlalign.data.example import Without
from rlalign.testing import Logits, PolicyGradient, run


def test_why_there_are_no_references():
    def told(**meta: object) -> str:
        return Example("e", "p", meta=meta).without_references

    assert told(blind="they are kept") == "example `e` has none: they are kept"
    said = told(blind=True)
    assert "`references` is missing or empty in its `meta` (which holds: blind)" in said
    assert said.endswith("in the task `dataset`, `references: COLUMN` names the column with them")
    assert "(which holds: none)" in told()


class Numbered(LazyExamples):
    """Example i is called i; where it is known, it has i responses and the key −i."""

    def __init__(self, start: int, stop: int, known: bool = True) -> None:
        self.places = range(start, stop)
        self.read = 0
        if known:
            self.response_counts = numpy.array(self.places)
            self.row_keys = -numpy.array(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def example(self, index: int) -> Example:
        self.read += 1
        return Example(str(self.places[index]), "")


def ids(examples: Sequence[Example]) -> list[str]:
    return [e.id for e in examples]


@pytest.mark.parametrize(
    "made, expected",
    [
        (Numbered(1, 4), [1, 2, 3]),
        (Without(Numbered(0, 5), {3, 0}), [1, 2, 4]),
        (Joined(Numbered(0, 2), Numbered(7, 7), Numbered(4, 6)), [0, 1, 4, 5]),
        (Without(Joined(Numbered(0, 2), Numbered(4, 6)), [1]), [0, 4, 5]),
        (Joined(), []),
    ],
)
def test_they_read_like_a_list(made: LazyExamples, expected: list[int]) -> None:
    plain = [str(i) for i in expected]
    assert ids(made) == plain
    for part in (slice(None), slice(1, None), slice(None, None, -1), slice(-2, 9)):
        assert ids(made[part]) == plain[part]
    for i in range(-len(plain), len(plain)):
        assert made[i].id == plain[i]
    for i in (len(plain), -len(plain) - 1):
        with pytest.raises(IndexError):
            made[i]
    if expected:
        assert made.response_counts is not None and made.response_counts.tolist() == expected
        assert made.row_keys is not None and made.row_keys.tolist() == [-i for i in expected]


def test_what_one_part_does_not_know_is_unknown() -> None:
    for made in (Without([Example("0", "")], [0]), Joined(Numbered(0, 2), Numbered(2, 4, known=False))):
        assert made.response_counts is None and made.row_keys is None


def test_nothing_is_read_before_it_is_asked_for() -> None:
    inner = Numbered(0, 100)
    assert Without(Joined(inner, inner), range(50))[60].id == "10"
    assert inner.read == 1


class Picky(Logits):
    """Reads no prompt that ends in one of these digits."""

    digits = "135"

    def refuse(self, examples: Sequence[Example], responses: object = ()) -> Mapping[int, str]:
        return {i: "is odd" for i, e in enumerate(examples) if str(e.prompt)[-1] in self.digits}


def test_what_the_policy_cannot_read_is_named(tmp_path: Path) -> None:
    pipeline = {
        "task": {"numbers": {"prompts": 6}},
        "policy": {"picky": {"prompts": 6}},
        "rewards": ["length"],
        "algorithm": "once",
        "generation": {"samples": 2, "max_new_tokens": 3},
        "train": {"passes": 1, "prompts": 3},
    }
    _, started = run(tmp_path, pipeline, {"once": PolicyGradient, "picky": Picky})
    assert started.ticks == 1
    assert (
        "policy `picky` leaves out 3 of 6 examples of `train`; the first is `1`: is odd"
        in started.display.notes
    )

    class Blind(Picky):
        digits = "0123456789"

    with pytest.raises(
        ConfigError, match="policy `blind` can read none of 6 examples of `train`; the first is `0`"
    ):
        run(tmp_path, {**pipeline, "policy": {"blind": {}}}, {"once": PolicyGradient, "blind": Blind})
