"""R-LoL: learning from logged responses by their reward (Baheti et al. 2024). Legend: N responses."""

from __future__ import annotations

from torch import Tensor

from rlalign import Batch, Run, hookimpl
from rlalign.data.statistics import refuse_negative
from rlalign_plugin_a_lol.leftover import LeftoverLunch


class RLoL(LeftoverLunch):
    """Reward leftover lunch: as A-LoL with the reward itself for the advantage, and so without a value."""

    equation = "−R sg(clip(π/π_ref)) log π(y)"

    class Config(LeftoverLunch.Config):
        """Options of `r-lol`."""

    config: Config

    @hookimpl
    def phase_started(self, run: Run) -> None:
        gain = run.column("reward", lambda rollout, reward: reward.total_N)
        refuse_negative(gain, "R-LoL weighs by them", "shift them, or take `a-lol`")
        self._draw(run, gain, "have a reward above 0")

    def gain(self, batch: Batch) -> Tensor:
        return batch.reward.total_N
