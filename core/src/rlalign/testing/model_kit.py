"""What the tests of policies and of values have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rlalign.data.batch import Batch
from rlalign.data.rollout import Rollout, padded
from rlalign.testing.bench import Bench
from rlalign.testing.kit import ComponentTests

Says = Callable[[Rollout], Tensor]
"""[N,T] or [N,T+1]: what a model says of responses."""


class ModelTests(ComponentTests):
    """All is computed in float64; `tolerance` is how far apart two ways to one number may lie."""

    tolerance: ClassVar[float] = 1e-9

    def close(self, found: Tensor, expected: Tensor, why: str) -> None:
        assert found.shape == expected.shape, f"{why}: {tuple(found.shape)}, not {tuple(expected.shape)}"
        apart = float((found - expected).abs().max()) if found.numel() else 0.0
        assert apart <= self.tolerance, (
            f"{why}: {apart:.1e} apart, more than `tolerance`, {self.tolerance:.0e}"
        )

    def check_padding(self, says: Says, rollout: Rollout) -> None:
        """Neither what stands behind a response's end, nor how many columns there are, moves anything."""
        expected = says(rollout)
        columns = torch.arange(rollout.steps, device=rollout.mask_NT.device)
        real_NT = columns < rollout.length_N[:, None]  # what was told, too
        for token in (0, 1):
            other = torch.where(real_NT, rollout.actions_NT, token)
            found = says(replace(rollout, actions_NT=other))
            self.close(found, expected, f"with the token {token} behind the ends of responses")
        names = ("actions_NT", "mask_NT", "logprobs_NT", "full_logprobs_NT")
        longer: dict[str, Any] = {name: padded(getattr(rollout, name), rollout.steps + 3) for name in names}
        wide = {name: x for name, x in rollout.columns.items() if isinstance(x, Tensor) and x.ndim == 2}
        columns_too = {name: padded(x, rollout.steps + 3) for name, x in wide.items()}
        found = says(replace(rollout, **longer, columns={**rollout.columns, **columns_too}))
        self.close(found[:, : expected.shape[1]], expected, "with three columns more")

    def check_rows(self, says: Says, rollout: Rollout) -> None:
        """In another order, and in parts that are no whole groups, a row is what it was."""
        expected = says(rollout)
        order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(0))
        parts = {"in another order": order, "three rows alone": order[:3], "one row": order[:1]}
        for why, rows in parts.items():
            self.close(says(rollout.take(rows)), expected[rows], why)

    def check_slope(self, bench: Bench, batch: Batch) -> None:
        """Along a direction drawn by chance, the gradient of all weights is that of finite differences."""
        start = bench.learner.parameters()
        along = torch.randn(start.shape, generator=torch.Generator().manual_seed(2), dtype=start.dtype)
        along /= along.norm()
        gradients, learned = bench.gradient(batch)[1], bench.learner.split(start)
        gradient = torch.cat([gradients[name].flatten() for name in learned])
        losses = []
        for step in (1e-5, -1e-5):
            bench.learner.assign(start + step * along)
            losses.append(bench.gradient(batch)[0]["loss"])
        bench.learner.assign(start)
        slope = (losses[0] - losses[1]) / 2e-5
        found = float(gradient @ along)
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-8), (
            f"along some direction the gradient of the weights is {found:.6g}, that of finite differences {slope:.6g}"
        )
