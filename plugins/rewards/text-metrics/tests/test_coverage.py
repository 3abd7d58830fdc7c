"""Keywords in responses, word by word, by stems, anywhere; and RL4LMs' penalty."""

from __future__ import annotations

import pytest

from rlalign import ComponentError, Example
from rlalign_plugin_text_metrics.coverage import CommonGenPenalty, Coverage, coverage, spelt_out


@pytest.mark.parametrize(
    ("text", "keywords", "word", "substring", "stem"),
    [
        ("The player stood in the field.", ["field", "look", "stand"], 1 / 3, 1 / 3, 1 / 3),
        ("He looks at fields", ["look", "field"], 0, 1, 1),
        ("He is outlooking", ["look"], 0, 1, 0),
        ("LOOK, a Field!", ["look", "FIELD"], 1, 1, 1),
        ("ice-cream melts", ["ice cream", "ice-cream", "cream", "melt"], 3 / 4, 3 / 4, 1),
        ("a dog's ball", ["dog", "ball"], 1, 1, 1),
        ("the cream is ice", ["ice cream"], 0, 0, 0),
        ("Die Straße", ["straße", "strasse"], 1 / 2, 1 / 2, 1 / 2),
        ("Cafe\u0301 Zoë", ["café", "zoë"], 1, 1 / 2, 1),
        ("", ["a"], 0, 0, 0),
        ("anything", [], 1, 1, 1),
    ],
)
def test_coverage(text, keywords, word, substring, stem):
    expected = {"word": word, "substring": substring, "stem": stem}
    assert {match: coverage(text, keywords, match) for match in expected} == pytest.approx(expected)


def test_keywords_of_examples():
    metric = Coverage(Coverage.Config(key="concepts"))
    metric.name = "coverage"
    for concepts in (["dog", "run"], ("dog", "run"), "dog  run"):
        assert metric.values(["dogs bark"], [Example("x", "", meta={"concepts": concepts})]) == [0.5]
    with pytest.raises(
        ComponentError, match=r"`meta\['concepts'\]`, .* `x` that is no such key .*: words\); set `key`"
    ):
        metric.values(["dog"], [Example("x", "", meta={"words": ["dog"]})])
    with pytest.raises(ComponentError, match="is no list of texts"):
        metric.values(["dog"], [Example("x", "", meta={"concepts": [1]})])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A dog can run.", 0),
        ("A dog runs.", -1),
        ("Dog RUN fast", -1),
        ("run dog", 0),
        ("Generate a story", -1),
        ("two sentences", -1),
        ("", 0),
    ],
)
def test_the_penalty(text, value):
    metric = CommonGenPenalty(CommonGenPenalty.Config())
    assert metric.values([text], [Example("x", "", meta={"keywords": ["dog", "run"]})]) == [value]


def test_no_keywords_are_spelt_out_nowhere():
    assert not spelt_out("anything", [], [])
