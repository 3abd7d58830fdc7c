"""What is maximised at each action, by hand."""

from __future__ import annotations

import pytest
import torch

from rlalign_plugin_reinforce.surrogates import clipped_surrogate


def test_a_largest_ratio_bounds_what_the_clip_leaves_without_a_bound() -> None:
    """Where A < 0 the clip holds a small ratio only: one of 5 counts as 5 without `largest`, as 3 with it."""
    ratio = torch.tensor([5.0, 2.0, 0.5, 5.0, 0.5], dtype=torch.float64)
    advantage = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    gain, acts = clipped_surrogate(ratio.log(), advantage, (0.2, 0.2))
    assert gain.tolist() == pytest.approx([-5.0, -2.0, -0.8, 1.2, 0.5])
    assert acts.tolist() == [False, False, True, True, False]
    log_ratio = ratio.log().requires_grad_()
    gain, acts = clipped_surrogate(log_ratio, advantage, (0.2, 0.2), 3.0)
    assert gain.tolist() == pytest.approx([-3.0, -2.0, -0.8, 1.2, 0.5])
    assert acts.tolist() == [True, False, True, True, False]
    (slope,) = torch.autograd.grad(gain.sum(), log_ratio)
    assert slope.tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0, 0.5])
