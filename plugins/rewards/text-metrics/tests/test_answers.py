"""Exact match, F1 and numbers against what was worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rlalign import ComponentError, Example
from rlalign_plugin_text_metrics.answers import ExactMatch, TokenF1, bare, exact_match, token_f1
from rlalign_plugin_text_metrics.numeric import NumericAnswer, answer_of, numbers


def test_normalisation():
    assert bare("The  Cat's, a-hat!\n") == "cats ahat"
    assert bare("Theatre an apple") == "theatre apple"
    assert bare("«Été» ÇA") == "«été» ça"


@pytest.mark.parametrize(
    ("text", "references", "em", "f1"),
    [
        ("The cat!", ["cat"], 1, 1),
        ("cat sat", ["cat", "a sat cat"], 0, 1),
        ("the cat sat here", ["cat on the mat", "dog"], 0, 2 / 6),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),  # nothing is left of either
        ("!", ["cat", "?"], 1, 1),
        ("dog", ["cat"], 0, 0),
    ],
)
def test_squad(text, references, em, f1):
    assert exact_match(text, references) == em
    assert token_f1(text, references) == pytest.approx(f1)


@pytest.mark.parametrize("cls", [ExactMatch, TokenF1, NumericAnswer])
def test_no_references(cls):
    metric = cls(cls.Config())
    metric.name = "mine"
    with pytest.raises(ComponentError, match=r"`mine` .* example `x` has none: .* \(which holds: answer\)"):
        metric.values(["1"], [Example("x", "", meta={"answer": "1"})])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so he has 4+4=8 eggs.\n#### 8", 8),
        ("#### 1,234.50 dollars, not 7", Fraction("1234.5")),
        ("####-3", -3),
        ("#### −3", -3),
        ("#### $1,000", 1000),
        ("#### -$5", -5),
        ("#### -€ 5", -5),
        ("#### - 18", 18),
        ("So the answer is:\n- 18", 18),
        ("So it costs:\n- $18", 18),
        ("- £ 18", 18),
        ("12 - 5", 5),
        ("#### Step 2\nThat makes 14.", 14),
        ("#### 1\n#### 2", 2),
        ("it is 2/4", Fraction(1, 2)),
        ("1,00 and 12,3456", 3456),
        ("12,345,678", 12345678),
        ("10-5=5", 5),
        ("-5 is less than -.5", Fraction("-0.5")),
        ("1e3", 1000),
        ("about 5%.", 5),
        ("GPT4 says x2", None),
        ("1/0", None),
        ("", None),
        ("####", None),
        ("no number, ½ aside", None),
        ("٣", 3),
    ],
)
def test_numbers(text, value):
    assert answer_of(text) == value


def test_numbers_that_nobody_can_read():
    assert numbers("9" * 100_000) == []
    assert answer_of("7 " + "9" * 100_000) == 7
    assert answer_of("1e999") == 10**999
    assert answer_of("," * 50_000 + "-" * 50_000 + "#" * 50_000) is None


def test_only_marked_numbers():
    assert answer_of("it is 3", marked=True) is None
    assert answer_of("it is 3 #### 4", marked=True) == 4
    assert answer_of("#### - 18", marked=True) is None


@pytest.mark.parametrize(
    ("text", "references", "tolerance", "value"),
    [
        ("#### 18", ["9 + 9 = <<9+9=18>>18\n#### 18"], 0.0, 1),
        ("18.0", ["#### 18"], 0.0, 1),
        ("36/2", ["18"], 0.0, 1),
        ("17", ["18"], 0.0, 0),
        ("17", ["18"], 0.1, 1),
        ("0.33", ["1/3"], 0.02, 1),
        ("-18", ["18"], 0.5, 0),
        ("5", ["4", "5"], 0.0, 1),
        ("none", ["4"], 9.0, 0),
    ],
)
def test_numeric_answers(text, references, tolerance, value):
    metric = NumericAnswer(NumericAnswer.Config(tolerance=tolerance))
    assert metric.values([text], [Example("x", "", meta={"references": references})]) == [value]


def test_a_reference_without_a_number():
    metric = NumericAnswer(NumericAnswer.Config())
    metric.name = "numeric-answer"
    with pytest.raises(ComponentError, match=r"`numeric-answer` .* a reference of example `q1` holds none"):
        metric.values(["1"], [Example("q1", "", meta={"references": ["1", "one"]})])
