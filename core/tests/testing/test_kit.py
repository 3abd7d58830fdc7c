"""The kit for every component: what it says to the author of a faulty one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign.data.batch import Batch, Loss, Outputs
from rlalign.data.rollout import Rollout
from rlalign.interface.hooks import hookimpl
from rlalign.testing import Bench, ComponentTests, PolicyGradient


class Mean(PolicyGradient):
    """Its mean is that of a piece."""

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-(batch.advantage_NT * now.logprobs_NT).mean())


class Forgetful(PolicyGradient):
    """What it learns from grows, and no state says how far."""

    times = 1.0

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-batch.mean_over_tokens(self.times * batch.advantage_NT * now.logprobs_NT))

    @hookimpl
    def iteration_done(self, rollout: Rollout) -> None:
        self.times += 1.0


def kit_of(cls: type[PolicyGradient]) -> ComponentTests:
    class Tests(ComponentTests):
        component = cls

    return Tests()


def test_a_mean_of_a_piece_is_told(tmp_path: Path) -> None:
    tests = kit_of(Mean)
    with pytest.raises(
        AssertionError, match=r"the loss is not the sum of its pieces .* `batch\.mean_over_…`"
    ):
        tests.test_loss_is_a_sum_over_units(Bench(tmp_path, tests.whole_pipeline(), tests.extra))


def test_a_state_that_is_forgotten_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="`state_dict` must give all that the component changes"):
        kit_of(Forgetful).test_resume_is_exact(tmp_path)
