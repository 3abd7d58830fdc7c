"""Accuracy and calibration by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlalign_plugin_model_rewards.calibration import (
    brier_score,
    expected_calibration_error,
    of_labels,
    of_pairs,
)


def test_calibration_error_is_the_gap_of_each_bin_weighed_by_its_size() -> None:
    confidence = torch.tensor([0.62, 0.68, 0.91, 0.99, 1.0])
    right = torch.tensor([True, False, True, True, False])
    bins = abs((1 + 0) - (0.62 + 0.68)) + abs((1 + 1 + 0) - (0.91 + 0.99 + 1.0))
    assert expected_calibration_error(confidence, right) == pytest.approx(bins / 5)
    assert expected_calibration_error(torch.ones(3), torch.ones(3, dtype=torch.bool)) == 0


def test_brier_score_is_summed_over_labels() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    first = (0.7 - 1) ** 2 + 0.2**2 + 0.1**2
    assert brier_score(probs, torch.tensor([0, 0])) == pytest.approx((first + 2) / 2)


def test_of_labels() -> None:
    probs = torch.tensor([[0.75, 0.25], [0.4, 0.6]], dtype=torch.float64)
    found = of_labels(probs.log(), torch.tensor([0, 0]))
    assert found["accuracy"] == 0.5
    assert found["ece"] == pytest.approx((0.25 + 0.6) / 2)
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 2 * 0.6**2) / 2)
    assert found["nll"] == pytest.approx(-(math.log(0.75) + math.log(0.4)) / 2)


def test_of_pairs() -> None:
    found = of_pairs(torch.tensor([math.log(3), -math.log(4), 0.0]))
    assert found["accuracy"] == 0.5  # a tie is half right
    # σ: 0.75, 0.2 and 0.5; as sure of the worse one as 0.8
    assert found["brier"] == pytest.approx(2 * (0.25**2 + 0.8**2 + 0.5**2) / 3)
    assert found["ece"] == pytest.approx((0.25 + 0.8 + 0.0) / 3)
    assert found["nll"] == pytest.approx(-(math.log(0.75) + math.log(0.2) + math.log(0.5)) / 3)
    assert found["margin"] == pytest.approx((math.log(3) - math.log(4)) / 3)
