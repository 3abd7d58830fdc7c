"""Krippendorff's α against published examples, by hand, and by a second way that counts pairs one by one."""

from __future__ import annotations

import random

import pytest

from rlalign_humaneval.agreement import agreement, alpha

# Krippendorff 2011, Computing Krippendorff's Alpha-Reliability: four observers, twelve units, `.` is missing.
OBSERVERS = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
# Another published example, of three coders and fifteen units.
CODERS = """
. . . . . 3 4 1 2 1 1 3 3 . 3
1 . 2 1 3 3 4 3 . . . . . . .
. . 2 1 3 4 4 . 2 1 1 3 3 . 4
"""


def units(table: str) -> list[list[int]]:
    lines = [line.split() for line in table.strip().splitlines()]
    return [[int(value) for value in column if value != "."] for column in zip(*lines, strict=True)]


def by_pairs(given: list[list[int]], metric: str) -> float:
    """α without a matrix: the mean disagreement of pairs within units, over that of all pairs of ratings."""
    met = [unit for unit in given if len(unit) > 1]
    every = [value for unit in met for value in unit]

    def distance(a: int, b: int) -> float:
        if metric == "nominal":
            return float(a != b)
        if metric == "interval":
            return float((a - b) ** 2)
        low, high = min(a, b), max(a, b)
        between = sum(low <= value <= high for value in every)
        return (between - (every.count(low) + every.count(high)) / 2) ** 2

    observed = 0.0
    for unit in met:
        pairs = [(a, b) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
        observed += sum(distance(a, b) for a, b in pairs) / (len(unit) - 1)
    expected = sum(distance(a, b) for i, a in enumerate(every) for j, b in enumerate(every) if i != j)
    return 1 - (observed / len(every)) / (expected / (len(every) * (len(every) - 1)))


@pytest.mark.parametrize(
    "table, metric, published",
    [
        (OBSERVERS, "nominal", 0.743),
        (OBSERVERS, "ordinal", 0.815),
        (OBSERVERS, "interval", 0.849),
        (CODERS, "nominal", 0.691),
        (CODERS, "interval", 0.811),
    ],
)
def test_published_examples(table, metric, published):
    assert alpha(units(table), metric) == pytest.approx(published, abs=5e-4)


def test_by_hand():
    """Two raters: 1 1, 2 2, 1 2. Within units 2 of 6 ordered ratings differ by 1; of all 30 pairs, 18 do."""
    given = [[1, 1], [2, 2], [1, 2]]
    assert alpha(given, "interval") == pytest.approx(1 - (2 / 6) / (18 / 30))
    assert alpha(given, "nominal") == pytest.approx(4 / 9)
    assert alpha(given, "ordinal") == pytest.approx(4 / 9)  # with two values all metrics are one
    found = agreement(given, ["nominal"])
    assert (found.same, found.units) == (pytest.approx(2 / 3), 3)


def test_distances_by_hand():
    """Ratings 1 1 | 3 3 | 1 5: n₁ = 3, n₃ = 2, n₅ = 1, so ordinal distances are 2.5² = 6.25 (1, 3), 4² = 16 (1, 5) and
    1.5² = 2.25 (3, 5); observed 2·16/6, expected (2·6·6.25 + 2·3·16 + 2·2·2.25)/30 = 180/30."""
    given = [[1, 1], [3, 3], [1, 5]]
    assert alpha(given, "ordinal") == pytest.approx(1 - (32 / 6) / (180 / 30))
    # interval: observed 2·16/6, expected (2·6·4 + 2·3·16 + 2·2·4)/30 = 160/30
    assert alpha(given, "interval") == pytest.approx(1 - (32 / 6) / (160 / 30))


@pytest.mark.parametrize("seed", range(20))
def test_a_second_way(seed):
    rng = random.Random(seed)
    raters, things = rng.randint(2, 6), rng.randint(2, 15)
    given = [
        [rng.choice((level, rng.randint(1, 5))) for _ in range(raters) if rng.random() < 0.7]
        for level in (rng.randint(1, 5) for _ in range(things))
    ]
    given += [[1, 2], [5, 4, 4]]
    for metric in ("nominal", "ordinal", "interval"):
        assert alpha(given, metric) == pytest.approx(by_pairs(given, metric), abs=1e-12)


def test_what_cannot_be_said():
    assert alpha([[1], [2], []], "interval") is None  # nothing was rated twice
    assert alpha([[3, 3], [3, 3, 3]], "ordinal") is None  # nothing varies: chance would agree always too
    assert agreement([[3, 3]], ["ordinal"]).same == 1
    assert alpha([[1, 1], [2, 2]], "ordinal") == 1
    assert alpha([[1, 2], [2, 1]], "nominal") == pytest.approx(-0.5)  # worse than chance
