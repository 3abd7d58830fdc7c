"""Files of suites: what they mean, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign_bench.suite import Score, Suite
from rlalign_study.core import ConfigError

SMALL = (Path(__file__).parent / "small.yaml").read_text()

DEMO = Path(__file__).parents[1] / "examples/demo.yaml"


def test_the_example():
    suite = Suite.read(DEMO)
    assert (suite.name, suite.tasks, suite.algorithms) == (
        "demo",
        ["steep", "flat"],
        ["rloo", "reinforce", "ppo"],
    )
    assert suite.bench.final == "final"
    assert suite.final["final"].each  # else there would be nothing to draw examples from
    assert suite.measurement_of("flat") == {"split": "test"}
    assert suite.budget_of("flat") == {"tokens": 1280}


def test_a_scale_may_run_either_way():
    assert Score(metric="payout", worst=1.0, best=3.0).scaled(2.5) == 0.75
    assert Score(metric="perplexity", worst=50.0, best=10.0).scaled(20.0) == 0.75


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("bench:", "bank:"), "bench: is missing"),
        (("final: {final", "# final: {final"), "`final` needs a measurement"),
        (("  kl: kl\n", "  kl: kl\n  final: last\n"), "there is no `last` in `final` (there are: final)"),
        (("  kl: kl\n", "  kl: divergence\n"), "`steep` has no metric `divergence`"),
        (("    flat: {metric: payout, worst: 1.1, best: 1.2}\n", ""), "says nothing of the task `flat`"),
        (("    flat: {metric", "    low: {metric"), "there is no task `low`; the tasks are steep, flat"),
        (("flat: {metric: payout", "flat: {metric: pay"), "small.yaml:21: there is no metric `pay`"),
        (("worst: 1.1, best: 1.2", "worst: 1.1, best: 1.1"), "the same: nothing could be ranked"),
        (("worst: 1.1,", "worse: 1.1,"), "bench.scores.flat.worse: this key is not known"),
        (
            ("reinforce: {set: {", "reinforce: {set: {phases: [{}, {}], "),
            "so its KL would be to the model that the",
        ),
        (
            ("arms: {rloo:", "arms: {a|b:"),
            "small.yaml:13: no entry can be of `a|b`: a name has up to 80 letters",
        ),
        (("tokens: 44", "tokens: 0"), "budget.tokens: "),
        (("tokens: 44", "steps: 44"), "budget.steps: this key is not known"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, change, expected):
    assert change[0] in SMALL
    (tmp_path / "small.yaml").write_text(SMALL.replace(*change))
    with pytest.raises(ConfigError) as raised:
        Suite.read(tmp_path / "small.yaml")
    assert expected in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}/small.yaml")
