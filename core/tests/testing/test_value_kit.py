"""The kit for values, on one that is sound and on some that are not."""

from __future__ import annotations

import pytest
import torch

from rlalign.testing import Bench, LinearValue, ValueTests


class TestLinearValue(ValueTests):
    component = LinearValue


class TestOnTheReference(ValueTests):
    component = LinearValue
    options = {"trunk": "reference"}


class KnowsTheToken(LinearValue):
    """Reads what is chosen in the state it values."""

    def values(self, rollout, features=None, last=False):
        rows, steps = rollout.chosen
        taken = rollout.actions_NT[rows, steps].to(features.dtype)
        return super().values(rollout, features) + (
            torch.cat([taken, taken.new_zeros(len(rollout))]) if last else taken
        )


class KnowsOthers(LinearValue):
    """Leans on the mean of all rows it is asked of."""

    def values(self, rollout, features=None, last=False):
        return super().values(rollout, features, last) - features.mean() * self.weight.sum()


class Forgets(LinearValue):
    """One value too few."""

    def values(self, rollout, features=None, last=False):
        return super().values(rollout, features, last)[: len(rollout.chosen[0])]


class Detached(LinearValue):
    """Its gradient does not reach the trunk."""

    def values(self, rollout, features=None, last=False):
        return super().values(rollout, features.detach() * 1.0, last)


@pytest.mark.parametrize(
    ("cls", "test", "told"),
    [
        (KnowsTheToken, "a_state_knows_nothing_of_what_comes", "depends on the step taken"),
        (KnowsOthers, "rows_move_no_others", "three rows alone: .* apart"),
        (Forgets, "a_number_for_each_state", "one more for each response"),
        (Detached, "gradient_of_the_network_is_that_of_finite_differences", "that of finite differences"),
    ],
)
def test_a_faulty_value_is_found(cls, test, told, tmp_path):
    class Tests(ValueTests):
        component = cls

    tests = Tests()
    bench = Bench(tmp_path, tests.whole_pipeline(), tests.extra)
    given = {"bench": bench}
    if "differences" not in test:
        given["rollout"], _ = bench.rollout()
        tests.move(bench, 0)
    with pytest.raises(AssertionError, match=told):
        getattr(tests, f"test_{test}")(**given)
