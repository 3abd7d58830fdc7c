"""The plainest losses: for wrappers, rewards and hooks to be tested with, and to derive a recorder from."""

from __future__ import annotations

from rlalign.data.batch import Batch, Loss, Outputs
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl


class PolicyGradient(Component):
    """−mean A log π(y), over the responses of whatever source."""

    needs: tuple[str, ...] = ("logprobs",)
    trains: tuple[str, ...] = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-batch.mean_over_responses(batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)))


class ValueFit(Component):
    """(V − A)² at every step, and no policy."""

    needs: tuple[str, ...] = ("values",)
    trains: tuple[str, ...] = ("value",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(batch.mean_over_tokens((now.values_NT - batch.advantage_NT) ** 2))


class PolicyAndValue(Component):
    """(V − A)² − A log π at every step: two models learn at once."""

    needs: tuple[str, ...] = ("logprobs", "values")
    trains: tuple[str, ...] = ("policy", "value")
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gain = batch.mean_over_tokens(batch.advantage_NT * now.logprobs_NT)
        return Loss(batch.mean_over_tokens((now.values_NT - batch.advantage_NT) ** 2) - gain)
