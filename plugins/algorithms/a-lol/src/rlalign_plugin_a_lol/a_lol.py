"""A-LoL: learning from logged responses by their advantage (Baheti et al. 2024). Legend: N responses."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from rlalign import Batch, ComponentError, Reward, Rollout, Run, hookimpl
from rlalign.data.batch import ADVANTAGE
from rlalign_plugin_a_lol.leftover import LeftoverLunch


class ALoL(LeftoverLunch):
    """Advantage leftover lunch: A = R − V(x), of a value that `fit-value` fitted in a phase before."""

    equation = "−A⁺ sg(clip(π/π_ref)) log π(y), A = R − V(x)"

    class Config(LeftoverLunch.Config):
        """Options of `a-lol`."""

        clamp: bool = Field(
            True,
            description="gain nothing where the advantage is negative; off, such responses are pushed down, without "
            "a bound (matters only where `draw: uniform` draws them)",
        )

    config: Config
    models = {"value": "value"}

    @hookimpl
    def phase_started(self, run: Run) -> None:
        value = run.models["value"]
        if value.version == 0 and any(True for _ in value.parameters()):
            raise ComponentError("the value was never fitted; put a phase with `fit-value` before this one")

        def advantage(rollout: Rollout, reward: Reward) -> Tensor:
            values_NT1 = run.score("value", rollout, ["state_values"]).state_values_NT1
            return reward.total_N - values_NT1[:, 0]  # of the first state, the prompt

        self._draw(run, run.column(ADVANTAGE, advantage), "earn more than the value of their prompt")

    def gain(self, batch: Batch) -> Tensor:
        advantage_N = batch.rollout.columns.get(ADVANTAGE)
        if not isinstance(advantage_N, Tensor):
            raise ComponentError("only logged responses have an advantage here; say `responses: logged`")
        return advantage_N.clamp_min(0) if self.config.clamp else advantage_N
