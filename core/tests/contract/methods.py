"""Small versions of published methods, each written as a stranger would write a plugin: against the public
names of `rlalign` alone. The test files beside this one run them through real pipelines.

Legend: N responses, G groups, T steps.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import (
    Batch,
    Component,
    Lagging,
    Loss,
    Nucleus,
    Options,
    Outputs,
    Reward,
    Rollout,
    Run,
    Value,
    hookimpl,
)

# -- imitation and preferences ------------------------------------------------------------------------------


class SFT(Component):
    """−mean log π of every response there is."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "logged"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-batch.mean_over_tokens(now.logprobs_NT))


class PolicyGradient(Component):
    """−mean A log π(y)."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "sampled"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-batch.mean_over_responses(batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)))


class DPO(Component):
    """−log σ(β(ρ_w − ρ_l)), w the better-scored of a group's two responses."""

    class Config(Options):
        """Options of `dpo`."""

        beta: float = Field(0.1, description="strength of the implicit KL")

    config: Config
    needs = ("full_logprobs", "reference.full_logprobs")
    trains = ("policy",)
    responses = "logged"
    regularises = True
    min_samples = 2

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        rho_N = batch.sum_over_chosen(now.full_logprobs_NT - batch.rollout.columns["reference.full_logprobs"])
        rows_G2, _ = batch.rollout.groups()
        order_G2 = batch.reward.total_N[rows_G2].argsort(dim=1, descending=True)
        rho_G2 = rho_N[rows_G2].gather(1, order_G2)
        margin_G = rho_G2[:, 0] - rho_G2[:, 1]
        loss_G = -torch.nn.functional.logsigmoid(self.config.beta * margin_G)
        return Loss(
            batch.mean_over_groups(loss_G),
            {"accuracy": batch.mean_over_groups((margin_G > 0).to(loss_G))},
        )


# -- PPO and NLPO -------------------------------------------------------------------------------------------


def gae(
    reward_NT: Tensor, values_NT1: Tensor, mask_NT: Tensor, length_N: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates at the chosen steps; steps that were given are passed over."""
    rows_N = torch.arange(len(reward_NT))
    next_N, carry_N = values_NT1[rows_N, length_N], torch.zeros_like(reward_NT[:, 0])
    advantage_NT = torch.zeros_like(reward_NT)
    for t in reversed(range(reward_NT.shape[1])):
        delta_N = reward_NT[:, t] + gamma * next_N - values_NT1[:, t]
        advantage_NT[:, t] = delta_N + gamma * lam * carry_N
        carry_N = torch.where(mask_NT[:, t], advantage_NT[:, t], carry_N)
        next_N = torch.where(mask_NT[:, t], values_NT1[:, t], next_N)
    return advantage_NT


class PPO(Component):
    """Clipped surrogate, value loss, entropy bonus, early stop by KL."""

    class Config(Options):
        """Options of `ppo`."""

        clip: float = Field(0.2, description="ε")
        gamma: float = Field(1.0, description="γ")
        lam: float = Field(0.95, description="λ of the advantage estimate")
        value: float = Field(0.5, description="weight of the value loss")
        entropy: float = Field(0.0, description="weight of the entropy bonus")
        target_kl: float | None = Field(
            None, description="the update ends when KL to old exceeds 1.5 times this"
        )

    config: Config
    needs: tuple[str, ...] = ("logprobs", "old_logprobs", "entropy", "values", "value.state_values")
    trains = ("policy", "value")
    unit = "response"
    responses = "sampled"

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        c, values_NT1 = self.config, rollout.columns["value.state_values"]
        advantage_NT = gae(reward.tokens_NT, values_NT1, rollout.mask_NT, rollout.length_N, c.gamma, c.lam)
        return Batch.of(rollout, reward, advantage_NT, returns=advantage_NT + values_NT1[:, :-1])

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        c, step = self.config, batch.step
        chosen_M = step.advantage_NT[step.rollout.mask_NT]
        advantage_NT = (batch.advantage_NT - chosen_M.mean()) / (chosen_M.std(correction=0) + 1e-8)
        x_NT = now.logprobs_NT - batch.old_logprobs_NT
        ratio_NT = x_NT.exp()
        clipped_NT = ratio_NT.clamp(1 - c.clip, 1 + c.clip)
        policy = -batch.mean_over_tokens(torch.minimum(ratio_NT * advantage_NT, clipped_NT * advantage_NT))
        value = batch.mean_over_tokens((now.values_NT - batch.columns["returns"]) ** 2) / 2
        entropy = batch.mean_over_tokens(now.entropy_NT)
        kl = batch.mean_over_tokens(torch.expm1(x_NT.detach()) - x_NT.detach())
        return Loss(
            policy + c.value * value - c.entropy * entropy,
            {"policy": policy, "value": value, "entropy": entropy, "kl": kl},
        )

    @hookimpl
    def step_ready(self, metrics: Mapping[str, float]) -> bool:
        target = self.config.target_kl
        return target is None or metrics[f"{self.name}/kl"] <= 1.5 * target


class NLPO(PPO):
    """PPO whose samples stay within the top-p set of a lagging copy."""

    class Config(PPO.Config):
        """Options of `nlpo`."""

        top_p: float = Field(0.9, description="probability of the set")
        refresh: int = Field(2, description="iterations between refreshes of the copy")

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.models = {"mask": Lagging(every=self.config.refresh)}
        self.constraint = Nucleus("mask", top_p=self.config.top_p)


# -- A-LoL ----------------------------------------------------------------------------------------------------


class PromptValue(Value):
    """A value of the prompt alone: one free number a prompt of a `logits` policy."""

    per_prompt = True

    def setup(self, policy: Any) -> None:
        self.free = torch.nn.Parameter(torch.zeros(policy.config.prompts, dtype=policy.free.dtype))

    def values(self, rollout: Rollout, features: Tensor | None = None, last: bool = False) -> Tensor:
        return self.free[torch.cat(list(rollout.inputs))[rollout.group_N]]


class FitValue(Component):
    """(V(x) − R)² on responses of the policy as it is."""

    needs = ("values",)
    trains = ("value",)
    unit = "response"
    responses = "sampled"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(batch.mean_over_responses((now.values_NT[:, 0] - batch.reward.total_N) ** 2))


class ALoL(Component):
    """A⁺ · clip(π/π_ref) · NLL on logged responses, drawn in proportion to A⁺."""

    class Config(Options):
        """Options of `a-lol`."""

        clip: float = Field(0.9, description="ε of the importance weight")
        draw: bool = Field(True, description="draw in proportion to A⁺")
        version: int = Field(0, description="part of the column's key")

    config: Config
    models = {"value": "value"}
    needs = ("full_logprobs", "reference.full_logprobs")
    trains = ("policy",)
    unit = "response"
    responses = "logged"
    regularises = True

    @hookimpl
    def phase_started(self, run: Run) -> None:
        def advantage(rollout: Rollout, reward: Reward) -> Tensor:
            return reward.total_N - run.score("value", rollout, ["state_values"]).state_values_NT1[:, 0]

        gain = run.column("advantage", advantage, key=[self.config.version])
        if self.config.draw:
            run.draw.weights(gain.clamp_min(0))
            run.draw.scale(float((gain > 0).double().mean()))

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        reference_N = batch.sum_over_chosen(batch.rollout.columns["reference.full_logprobs"])
        ratio_N = (logp_N.detach() - reference_N).exp().clamp(1 - self.config.clip, 1 + self.config.clip)
        gain_N = batch.rollout.columns["advantage"].clamp_min(0)
        return Loss(-batch.mean_over_responses(gain_N * ratio_N * logp_N))


# -- filters --------------------------------------------------------------------------------------------------


class Informative(Component):
    """DAPO's dynamic sampling: groups whose responses all earned the same teach nothing and go."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        total_N, group_N = batch.reward.total_N, batch.rollout.group_N
        most_G = total_N.new_zeros(len(batch.rollout.examples))
        least_G = most_G.scatter_reduce(0, group_N, total_N, "amin", include_self=False)
        most_G = most_G.scatter_reduce(0, group_N, total_N, "amax", include_self=False)
        return batch.take((most_G > least_G)[group_N]).as_step()


class Watch(Component):
    """Learns nothing; remembers what passed: rollouts, batches, and weights when phases start and iterations end."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.batches: list[Batch] = []
        self.started: list[dict[str, dict[str, Tensor]]] = []
        self.done: list[dict[str, dict[str, Tensor]]] = []
        self.runs: list[Run] = []

    @hookimpl
    def phase_started(self, run: Run) -> None:
        self.runs.append(run)
        self.started.append(_weights(run))

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        self.batches.append(batch)
        return batch

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        self.done.append(_weights(run))


def _weights(run: Run) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.clone() for key, value in model.state_dict().items()}
        for name, model in run.models.items()
    }


METHODS: dict[str, type[Any]] = {
    "sft": SFT,
    "policy-gradient": PolicyGradient,
    "dpo": DPO,
    "ppo": PPO,
    "nlpo": NLPO,
    "prompt-value": PromptValue,
    "fit-value": FitValue,
    "a-lol": ALoL,
    "informative": Informative,
    "watch": Watch,
}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Equal weights, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
