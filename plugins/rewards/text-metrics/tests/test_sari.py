"""SARI: a case by hand, the script's own examples, sources and what is missing."""

from __future__ import annotations

import pytest

from rlalign import ComponentError, Example
from rlalign_plugin_text_metrics.sari import SariMetric, sari


def test_by_hand():
    # n = 1: all right in keeping a, b, adding d, deleting c; 2: likewise; 3: nothing to keep; 4: there is nothing
    found = sari("a b c", "a b d", ["a b d"], "none")
    assert found == (0.5, 0.75, 0.75)
    assert found.mean == pytest.approx(2 / 3)


def test_two_references_by_hand():
    found = sari("a b", "a c", ["a", "c"], "none")
    # n = 1: a counts 2 and is wanted once: P 1/2, R 1/1, F 2/3; c is wanted; b goes. n = 2: `a c` wrong, `a b` goes
    assert found == pytest.approx((2 / 3 / 4, 1 / 4, 2 / 4))


def test_keeping_what_one_of_two_references_keeps():
    found = sari("a b", "a", ["a b", "a"], "none")
    # n = 1: a in both; b is deleted where one of two keeps it: 1/2. Kept: P 1; R (1 + 0)/2. n = 2: `a b` as b.
    assert found == pytest.approx(((2 / 3) / 4, 0, (1 / 2 + 1 / 2) / 4))


def test_the_examples_of_the_paper_s_script():
    source = "About 95 species are currently accepted ."
    references = [
        "About 95 species are currently known .",
        "About 95 species are now accepted .",
        "95 species are now accepted .",
    ]
    golden = {
        "About 95 you now get in .": 0.2682782411698074,
        "About 95 species are now agreed .": 0.5889995423074248,
        "About 95 species are currently agreed .": 0.5071608864657479,
    }
    for text, value in golden.items():
        for tokenize in ("none", "13a"):
            assert sari(source, text, references, tokenize).mean == pytest.approx(value, abs=1e-12)


def test_who_says_nothing_simplifies_nothing():
    for text in ("", "  "):
        assert sari("a b c", text, ["a"]) == (0, 0, 0)
    assert sari("a b c", "a", [""]).delete > 0


def test_words_are_parted_from_punctuation():
    assert sari("One, two.", "One.", ["one ."]).mean > sari("One, two.", "One.", ["one ."], "none").mean


def test_sources():
    metric = SariMetric(SariMetric.Config())
    expected = sari("a b c", "a b d", ["a b d"]).mean
    meta = {"references": ["a b d"], "hard": "a b c", "number": 3}
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "a b c"}]
    for prompt in ("a b c", chat):
        assert metric.values(["a b d"], [Example("x", prompt, meta=meta)]) == [pytest.approx(expected)]
    named = SariMetric(SariMetric.Config(source="hard"))
    assert named.values(["a b d"], [Example("x", "y", meta=meta)]) == [pytest.approx(expected)]
    for key in ("soft", "number"):
        other = SariMetric(SariMetric.Config(source=key))
        other.name = "sari"
        with pytest.raises(
            ComponentError, match=rf"`sari` .* `meta\['{key}'\]`.* example `x` .*references, hard, number"
        ):
            other.values(["a"], [Example("x", "y", meta=meta)])
