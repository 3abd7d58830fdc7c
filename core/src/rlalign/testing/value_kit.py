"""Tests to inherit: what every value model must do, whatever it reads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign.data.rollout import Rollout
from rlalign.interface.policy import Value
from rlalign.testing.bench import Bench
from rlalign.testing.kit import json_options
from rlalign.testing.model_kit import ModelTests


class ValueTests(ModelTests):
    """Inherit, name the value and pytest does the rest.

    `component` is its name or class, `options` what the pipeline gives it. It is tried with a small policy that has
    a trunk of width 5; where it needs another, `pipeline` names it, with a task. All is computed in float64;
    `tolerance` is how far apart two ways to one value may lie.
    """

    def whole_pipeline(self) -> dict[str, Any]:
        """A small pipeline in which policy and value learn."""
        models = {"models": {"value": {self.named: json_options(self.options)}}}
        return {**super().whole_pipeline(), **models, "algorithm": "policy-and-value", **self.pipeline}

    @pytest.fixture
    def rollout(self, bench: Bench) -> Rollout:
        """Responses; all weights are a little elsewhere then: those that begin at zero hide faults."""
        found, _ = bench.rollout()
        self.move(bench, 0)
        return found

    def value(self, bench: Bench) -> Value:
        found = bench.engine.models["value"]
        assert isinstance(found, Value)
        return found

    def states(self, bench: Bench, rollout: Rollout) -> Tensor:
        """[N,T+1]: of each state of a response, and of that after its last step."""
        return bench.engine.score("value", rollout, ["state_values"]).state_values_NT1

    def test_a_number_for_each_state(self, bench: Bench, rollout: Rollout) -> None:
        """And none of them is the same whatever its weights are."""
        value = self.value(bench)
        with torch.no_grad():
            read = bench.engine._read(value, rollout)
            found = value.values(rollout, read)
            if value.per_prompt:
                assert found.shape == (len(rollout),), (
                    f"`per_prompt`: {tuple(found.shape)}, not one a response"
                )
            else:
                steps = len(rollout.chosen[0])
                assert found.shape == (steps,), f"{tuple(found.shape)}, not one a step, ({steps},)"
                more = value.values(rollout, bench.engine._read(value, rollout, last=True), last=True)
                assert more.shape == (steps + len(rollout),), "with `last`, one more for each response"
                self.close(more[:steps], found, "the values of steps, with `last`")
        assert bool(torch.isfinite(found).all())
        before = self.states(bench, rollout)
        self.move(bench, 1)
        assert not torch.equal(self.states(bench, rollout), before), "other weights change nothing"

    def test_padding_moves_nothing(self, bench: Bench, rollout: Rollout) -> None:
        self.check_padding(partial(self.states, bench), rollout)

    def test_rows_move_no_others(self, bench: Bench, rollout: Rollout) -> None:
        self.check_rows(partial(self.states, bench), rollout)

    def test_a_state_knows_nothing_of_what_comes(self, bench: Bench, rollout: Rollout) -> None:
        """Another last token, or for a value of the prompt others all along: values from before are what they were."""
        expected = self.states(bench, rollout)
        per_prompt, step_T = self.value(bench).per_prompt, torch.arange(rollout.steps)
        last_N1 = rollout.length_N[:, None] - 1
        others_NT = torch.where(rollout.actions_NT == 0, 1, 0)
        change_NT = (step_T <= last_N1) if per_prompt else (step_T == last_N1)
        other = replace(rollout, actions_NT=torch.where(change_NT, others_NT, rollout.actions_NT))
        found = self.states(bench, other)
        seen_NT1 = torch.arange(rollout.steps + 1) <= last_N1
        self.close(found[seen_NT1], expected[seen_NT1], "a state's value depends on the step taken in it")

    def test_every_cut_of_a_step_gives_one_gradient(self, bench: Bench) -> None:
        self.move(bench, 0)
        batch = bench.batch()
        self.move(bench, 1)
        self.check_routes(bench, batch)

    def test_gradient_of_the_network_is_that_of_finite_differences(self, bench: Bench) -> None:
        """Of its squared error and a policy gradient's loss together, along a direction drawn by chance."""
        self.move(bench, 0)
        self.check_slope(bench, bench.batch())
