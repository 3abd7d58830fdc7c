"""From answers to figures, worked out by hand; and what is printed of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from scipy import stats

from rlalign_humaneval import page, report
from rlalign_humaneval.files import TIE, Answers, Key
from rlalign_humaneval.questions import Axis
from rlalign_humaneval.scores import scores
from rlalign_humaneval.sources import Example, Source

AXIS = Axis(name="fluency", question="Does it | read well?")


def made(runs: Sequence[str], items: Sequence[Sequence[str]], *, axes: int = 1) -> Key:
    """The key of a page on which item i is what each run wrote."""
    examples = [
        Example(None, f"prompt {i}", dict(zip(runs, texts, strict=True))) for i, texts in enumerate(items)
    ]
    found = [Source(run, run, None, []) for run in runs]
    return page.blinded(examples, found, [AXIS] * axes, "Which is better?", task=None, seed=0)


def rater(
    key: Key,
    name: str,
    rating: Callable[[str], int | None] = lambda text: None,
    better: Callable[[str, str], str | None] = lambda a, b: None,
) -> Answers:
    """Answers by what the texts say: `better` names a text, or says that it is a tie; None is no answer."""
    text_of = {name: text for name, (_, text) in key.sheet.texts.items()}
    choices = {}
    for pair, (left, right) in key.sheet.pairs.items():
        said = better(*sorted((text_of[left], text_of[right])))
        if said is not None:
            choice = TIE if said == TIE else left if text_of[left] == said else right
            choices[pair] = {"choice": choice, "left": left}
    return Answers(
        format="rlalign-humaneval-answers/1",
        page=key.page,
        rater=name,
        ratings={name: (rating(text),) for name, text in text_of.items() if rating(text)},
        choices=choices,
    )


ITEMS = [("a 4", "b 2"), ("a 5", "b 3"), ("a 3", "b 3!"), ("a 4!", "b 2!")]


def first_digit(text: str) -> int:
    return int(next(c for c in text if c.isdigit()))


def test_means_by_hand():
    """Ada rates as written, Bob all of run a by one less and the last item not at all."""
    key = made("ab", ITEMS)

    def bobs(text: str) -> int | None:
        return None if "!" in text else first_digit(text) - ("a" in text)

    found = scores(key, [rater(key, "ada", first_digit), rater(key, "bob", bobs)])
    (axis,) = found.axes
    a, b = axis.runs
    means = [3.5, 4.5, 2.5, 4.0]  # of two raters each, but for the last
    assert a.mean.mean == pytest.approx(3.625)
    interval = stats.ttest_1samp(means, 0).confidence_interval()
    assert (a.mean.low, a.mean.high) == pytest.approx((interval.low, interval.high))
    assert (a.mean.count, a.ratings, a.counts) == (4, 7, (0, 1, 2, 3, 1))
    assert (b.mean.mean, b.ratings) == (2.5, 6)
    assert axis.anova.p == pytest.approx(stats.f_oneway(means, [2, 3, 3, 2]).pvalue)
    (difference,) = axis.tukey
    assert (difference.runs, difference.difference) == (("a", "b"), pytest.approx(1.125))
    assert axis.agreement.units == 5
    assert axis.agreement.same == pytest.approx(2 / 5)
    ada, bob = found.raters
    assert (ada.rated, ada.mean, bob.rated, bob.mean) == (8, pytest.approx(26 / 8), 5, pytest.approx(14 / 5))


def test_win_rates_by_hand():
    """Of four items: a wins twice over, a win and a tie, a tie and a loss, and one is the same text in both runs."""
    key = made("ab", [("a1", "b1"), ("a2", "b2"), ("a3", "b3"), ("same", "same")])
    ada = rater(key, "ada", better=lambda a, b: TIE if a == "a3" else a)
    bob = rater(key, "bob", better=lambda a, b: {"a1": a, "a2": TIE, "a3": b}[a])
    found = scores(key, [ada, bob])
    (pair,) = found.pairwise
    assert (pair.wins, pair.ties, pair.losses, pair.identical, pair.items) == (3, 2, 1, 1, 4)
    assert pair.rate.share == pytest.approx((1 + 0.75 + 0.25 + 0.5) / 4)
    assert pair.agreement.same == pytest.approx(1 / 3)
    assert pair.agreement.units == 3
    assert found.asked == (7, 3)
    chose = [c for c in ada.choices.values() if c.choice != TIE]
    assert found.raters[0].first == sum(c.choice == c.left for c in chose) / 2


def test_wins_are_the_runs_whatever_side_they_stood_on():
    """Twenty comparisons of run a's text, which is always better: a wins all, though it stood on both sides."""
    key = made("ab", [(f"good {i}", f"bad {i}") for i in range(20)])
    found = scores(key, [rater(key, "ada", better=lambda bad, good: good)])
    assert found.pairwise[0].wins == 20
    assert found.pairwise[0].rate.low == pytest.approx(20 / (20 + 1.959964**2))
    assert 0 < found.raters[0].first < 1
    turned = scores(made("ba", [(f"bad {i}", f"good {i}") for i in range(20)]), [])
    assert turned.pairwise[0].runs == ("b", "a")


def test_a_text_of_two_of_three_runs_counts_for_both():
    key = made("abc", [("x 5", "x 5", "z 1"), ("x 4", "y 2", "z 2!")])
    found = scores(key, [rater(key, "ada", first_digit, better=lambda a, b: a)])
    assert [r.mean.mean for r in found.axes[0].runs] == [4.5, 3.5, 1.5]
    by_runs = {c.runs: c for c in found.pairwise}
    assert [(c.wins, c.losses, c.identical) for c in by_runs.values()] == [(1, 0, 1), (2, 0, 0), (2, 0, 0)]
    assert by_runs["a", "b"].rate.share == 0.75
    assert len(found.axes[0].tukey) == 3


def test_what_is_printed():
    key = made(["run|a", "b"], ITEMS)
    answers = [
        rater(key, "ada\n| x", first_digit, lambda a, b: a),
        rater(key, "bob", first_digit, lambda a, b: a),
    ]
    found = scores(key, answers)
    text = report.markdown(found)
    assert "| run\\|a | 4.00 ± 1.30 | 4 | 8 | 0 | 0 | 2 | 4 | 2 |" in text
    assert "Does it \\| read well?" in text
    assert "F = 9.00, p = 0.024." in text
    assert "α 1.00 (ordinal), 1.00 (interval); the same rating in 100 % of pairs" in text
    assert "| run\\|a − b | 100 % | 51 % … 100 % | 8 | 0 | 0 | 0 | 4 | – | 100 % |" in text
    assert "| ada \\| x | 8/8 |" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    read = json.loads(report.as_json(found))
    assert read["axes"][0]["runs"][0]["mean"]["mean"] == 4
    assert read["pairwise"][0]["rate"]["share"] == 1


def test_nothing_answered_is_no_error():
    key = made("ab", ITEMS)
    found = scores(key, [rater(key, "ada")])
    assert found.axes[0].anova is None and found.pairwise[0].rate is None
    text = report.markdown(found)
    assert "| a | – | 0 | 0 |" in text and "nothing was rated twice" in text
    assert json.loads(report.as_json(found))["axes"][0]["runs"][0]["mean"] is None
    one = scores(made("ab", ITEMS[:1]), [rater(made("ab", ITEMS[:1]), "ada", first_digit)])
    assert one.axes[0].runs[0].mean.mean == 4
    assert json.loads(report.as_json(one))["axes"][0]["runs"][0]["mean"]["low"] is None
    assert "| a | 4.00 | 1 | 1 |" in report.markdown(one)
