"""Learning from preferences: pairs and ranked groups of responses to one prompt, and single ones judged good or bad.

What is better is said by the reward: stored scores of logged responses (`chosen` 1, `rejected` 0), or any reward
of sampled ones. Log-probs are those of the whole distribution, nothing truncated. Legend: N responses, G groups,
K responses of a group, P pairs, T steps.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import (
    Batch,
    Component,
    ComponentError,
    Example,
    Loss,
    Options,
    Outputs,
    Reward,
    Rollout,
    Run,
    hookimpl,
)
from rlalign_plugin_preference.losses import (
    Which,
    dpo_loss,
    ipo_loss,
    kto_loss,
    log_odds,
    mean_logprob,
    pairs,
    pro_loss,
    ranked,
    simpo_loss,
)

__all__ = [
    *("DPO", "IPO", "KTO", "ORPO", "PRO", "RDO", "RRHF", "SimPO"),
    *("dpo_loss", "ipo_loss", "kto_loss", "log_odds", "pairs", "pro_loss", "ranked", "simpo_loss"),
]

REFERENCE = "reference.full_logprobs"
GAIN, DISTANCE = "rdo.gain", "rdo.distance"
"""Columns of `rdo`: what the coefficient of a pair is a difference of; a response's mean distance to its siblings."""


class _Comparing(Component):
    """What the losses on pairs and ranked groups share."""

    needs: Sequence[str] = ("full_logprobs",)
    trains = ("policy",)
    responses = "logged"
    min_samples = 2
    which: Which = "all"

    def each(self, batch: Batch) -> Tensor:
        """[P] True: what a mean over the pairs of a step counts."""
        return torch.ones_like(pairs(batch, self.which)[0], dtype=torch.bool)

    def count(self, batch: Batch) -> Tensor:
        """Pairs of the step."""
        return batch.step.count(self.each).clamp_min(1)

    def refuse_single(self, batch: Batch) -> None:
        """A response that is alone cannot be compared."""
        alone = (torch.bincount(batch.rollout.group_N) == 1).nonzero()[:, 0].tolist()
        if alone:
            raise ComponentError(
                f"`{self.name}` compares responses to one prompt, and example "
                f"`{batch.rollout.examples[alone[0]].id}` has one response only; `unpaired: skip` leaves such out"
            )

    def figures(
        self, batch: Batch, chosen_P: Tensor, rejected_P: Tensor, reward_N: Tensor, logp_N: Tensor
    ) -> dict[str, Tensor]:
        """What is worth watching, means over the pairs of the step."""
        reward_N, logp_N, count = reward_N.detach(), logp_N.detach(), self.count(batch)
        margin_P = reward_N[chosen_P] - reward_N[rejected_P]
        means = {
            "accuracy": (margin_P > 0).to(margin_P),
            "margin": margin_P,
            "chosen_reward": reward_N[chosen_P],
            "rejected_reward": reward_N[rejected_P],
            "chosen_logprob": logp_N[chosen_P],
            "rejected_logprob": logp_N[rejected_P],
        }
        if (weight_P := coefficient(batch, chosen_P, rejected_P)) is not None:
            means |= {"coefficient": weight_P, "weightless": (weight_P == 0).to(weight_P)}
        unpaired_G = logp_N.new_ones(len(batch.rollout.examples))
        unpaired_G[batch.rollout.group_N[chosen_P]] = 0.0
        return {
            **{name: x_P.sum() / count for name, x_P in means.items()},
            "pairs": logp_N.new_tensor(float(len(chosen_P))),
            "unpaired": batch.mean_over_groups(unpaired_G),
        }


def coefficient(batch: Batch, chosen_P: Tensor, rejected_P: Tensor) -> Tensor | None:
    """[P]: the weight that `rdo` gives each pair, not below 0; None without it."""
    gain_N = batch.columns.get(GAIN)
    return None if gain_N is None else (gain_N[chosen_P] - gain_N[rejected_P]).clamp_min(0)


# -- pairs ------------------------------------------------------------------------------------------------------


class _Pairwise(_Comparing):
    """A loss of the margin between the implied rewards of a pair; a mean over the pairs of the step."""

    class Config(Options):
        """Options of every loss on pairs."""

        pairs: Which = Field(
            "best-worst",
            description="of a group of more than two: the best against the worst, or `all`, every better one against "
            "every worse one; equal rewards make no pair",
        )
        unpaired: Literal["error", "skip"] = Field(
            "error",
            description="what a prompt with one response does: end the run, or be left out and counted",
        )

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.which = self.config.pairs

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        """[N]: a response's implied reward."""
        raise NotImplementedError

    def per_pair(self, margin_P: Tensor) -> Tensor:
        """[P]: the loss."""
        raise NotImplementedError

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        if self.config.unpaired == "error":
            self.refuse_single(batch)
        chosen_P, rejected_P = pairs(batch, self.which)
        reward_N = self.implied(batch, now)
        loss_P = self.per_pair(reward_N[chosen_P] - reward_N[rejected_P])
        if (weight_P := coefficient(batch, chosen_P, rejected_P)) is not None:
            loss_P = weight_P * loss_P
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        figures = self.figures(batch, chosen_P, rejected_P, reward_N, logp_N)
        return Loss(loss_P.sum() / self.count(batch), figures)


class DPO(_Pairwise):
    """Direct preference optimisation (Rafailov et al. 2023), with label smoothing cDPO or robust DPO."""

    class Config(_Pairwise.Config):
        """Options of `dpo`."""

        beta: float = Field(0.1, gt=0, description="β: strength of the implicit KL to the reference")
        label_smoothing: float = Field(
            0.0, ge=0, lt=0.5, description="ε: the share of preferences taken to be the wrong way round"
        )
        robust: bool = Field(False, description="with ε, the unbiased loss of robust DPO instead of cDPO's")
        reference_free: bool = Field(False, description="log π alone, as if the reference were uniform")

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.regularises = not self.config.reference_free
        if not self.config.reference_free:
            self.needs = ("full_logprobs", REFERENCE)

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        logprobs_NT = now.full_logprobs_NT
        if not self.config.reference_free:
            logprobs_NT = logprobs_NT - batch.rollout.columns[REFERENCE]
        return self.config.beta * batch.sum_over_chosen(logprobs_NT)

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return dpo_loss(margin_P, self.config.label_smoothing, self.config.robust)


class IPO(_Pairwise):
    """Identity preference optimisation (Azar et al. 2023): the margin is drawn to a finite value."""

    class Config(_Pairwise.Config):
        """Options of `ipo`."""

        tau: float = Field(0.1, gt=0, description="τ: strength of the KL to the reference")
        average: bool = Field(
            True,
            description="ρ a mean over a response's tokens, as TRL has it; false: a sum, as the paper writes it",
        )

    config: Config
    needs = ("full_logprobs", REFERENCE)
    regularises = True

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        rho_NT = now.full_logprobs_NT - batch.rollout.columns[REFERENCE]
        rho_N = mean_logprob(batch, rho_NT) if self.config.average else batch.sum_over_chosen(rho_NT)
        return self.config.tau * rho_N

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return ipo_loss(margin_P / self.config.tau, self.config.tau)


class SimPO(_Pairwise):
    """Simple preference optimisation (Meng et al. 2024): mean token log-probs, a target margin, no reference."""

    class Config(_Pairwise.Config):
        """Options of `simpo`."""

        beta: float = Field(2.5, gt=0, description="β: scale of the mean token log-prob")
        gamma: float = Field(
            1.375, ge=0, description="γ: the margin between chosen and rejected that is aimed at"
        )

    config: Config

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        return self.config.beta * mean_logprob(batch, now.full_logprobs_NT)

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return simpo_loss(margin_P, self.config.gamma)


class ORPO(_Pairwise):
    """Odds ratio preference optimisation (Hong et al. 2024): imitate the best, and raise its odds over the worse."""

    class Config(_Pairwise.Config):
        """Options of `orpo`."""

        lam: float = Field(
            0.1, ge=0, description="λ: weight of the odds ratio beside the imitation of the best"
        )

    config: Config

    def best(self, batch: Batch) -> Tensor:
        """[N]: the best response of each group that has a pair."""
        best_N = torch.zeros_like(batch.rollout.group_N, dtype=torch.bool)
        best_N[pairs(batch, "best-worst")[0]] = True
        return best_N

    def implied(self, batch: Batch, now: Outputs) -> Tensor:
        return log_odds(mean_logprob(batch, now.full_logprobs_NT))

    def per_pair(self, margin_P: Tensor) -> Tensor:
        return dpo_loss(margin_P)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        odds = super().loss(batch, now)
        nll = batch.mean_over_tokens(-now.full_logprobs_NT, where=self.best)
        return Loss(nll + self.config.lam * odds.value, {**odds.metrics, "nll": nll, "odds": odds.value})


# -- ranked groups ------------------------------------------------------------------------------------------------


class RRHF(_Comparing):
    """Yuan et al. (2023): Σ max(0, p_worse − p_better) over all pairs, p a mean token log-prob, − log π(best).

    A mean over prompts; one with a single response is imitated.
    """

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        rows_GK, _ = ranked(batch)
        chosen_P, rejected_P = pairs(batch, self.which)
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        score_N = mean_logprob(batch, now.full_logprobs_NT)
        hinge_P = (score_N[rejected_P] - score_N[chosen_P]).clamp_min(0)
        if (weight_P := coefficient(batch, chosen_P, rejected_P)) is not None:
            hinge_P = weight_P * hinge_P
        group_P = batch.rollout.group_N[chosen_P]
        ranking = batch.mean_over_groups(hinge_P.new_zeros(len(rows_GK)).index_add(0, group_P, hinge_P))
        sft = batch.mean_over_groups(-logp_N[rows_GK[:, 0]])
        figures = self.figures(batch, chosen_P, rejected_P, score_N, logp_N)
        return Loss(ranking + sft, {**figures, "ranking": ranking, "sft": sft})


class PRO(_Comparing):
    """Preference ranking optimisation (Song et al. 2023): each response against all worse ones, and − log π(best).

    A mean over prompts. Imitation is weighted by `sft`·(K−1)² for K responses, as in the released code.
    """

    class Config(Options):
        """Options of `pro`."""

        sft: float = Field(0.05, ge=0, description="imitation of the best weighs this times (responses − 1)²")
        unpaired: Literal["error", "skip"] = Field(
            "error",
            description="what a prompt with one response does: end the run, or be left out and counted",
        )

    config: Config

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        if self.config.unpaired == "error":
            self.refuse_single(batch)
        if GAIN in batch.columns:
            raise ComponentError(f"`{self.name}` weighs responses by their rewards already; take `rdo` out")
        rows_GK, real_GK = ranked(batch)
        logp_N = batch.sum_over_chosen(now.full_logprobs_NT)
        score_N = mean_logprob(batch, now.full_logprobs_NT)
        ranking = batch.mean_over_groups(pro_loss(score_N[rows_GK], batch.reward.total_N[rows_GK], real_GK))
        weight_G = self.config.sft * (real_GK.sum(1).to(logp_N) - 1) ** 2
        sft = batch.mean_over_groups(-weight_G * logp_N[rows_GK[:, 0]])
        figures = self.figures(batch, *pairs(batch, self.which), score_N, logp_N)
        return Loss(ranking + sft, {**figures, "ranking": ranking, "sft": sft})


# -- single responses -----------------------------------------------------------------------------------------------


class KTO(Component):
    """Kahneman–Tversky optimisation (Ethayarajh et al. 2024): responses good or bad each for itself.

    Their point of reference z is the mean ρ of the step's responses put after other prompts, not below 0,
    without gradient, scored once a step.
    """

    class Config(Options):
        """Options of `kto`."""

        beta: float = Field(0.1, gt=0, description="β: strength of the KL to the reference")
        desirable: float = Field(1.0, ge=0, description="λ_D: weight of a desirable response")
        undesirable: float = Field(1.0, ge=0, description="λ_U: weight of an undesirable one")
        threshold: float = Field(0.0, description="a response is desirable whose reward is above this")

    config: Config
    needs = ("full_logprobs", REFERENCE)
    trains = ("policy",)
    unit = "response"
    responses = "logged"
    regularises = True

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N, mismatched=self._mismatched(rollout))

    def _mismatched(self, rollout: Rollout) -> Rollout:
        """The same responses after another prompt each. What was computed of them by a model stays behind."""
        other_G = torch.tensor(
            self._others(rollout.examples), device=rollout.group_N.device, dtype=torch.long
        )
        own = {name: column for name, column in rollout.columns.items() if "." not in name}
        moved = replace(rollout, group_N=other_G[rollout.group_N], columns=own)
        return moved.take(torch.arange(len(rollout)))  # which forgets prompts that nobody answers now

    def _others(self, examples: Sequence[Example]) -> list[int]:
        """Of each example the next one with another prompt."""
        count = len(examples)
        found = []
        for g, example in enumerate(examples):
            others = ((g + step) % count for step in range(1, count))
            other = next((i for i in others if examples[i].prompt != example.prompt), None)
            if other is None:
                raise ComponentError(
                    f"`{self.name}` puts responses after other prompts, and the iteration has one prompt only, that of "
                    f"example `{example.id}`; draw more with `train.prompts`"
                )
            found.append(other)
        return found

    def good(self, batch: Batch) -> Tensor:
        """[N]: the desirable ones."""
        return batch.reward.total_N > self.config.threshold

    def bad(self, batch: Batch) -> Tensor:
        """[N]: the others."""
        return ~self.good(batch)

    def reference_point(self, run: Run, step: Batch) -> Tensor:
        """z. The run remembers what it scored, so that pieces of a step share it."""
        others: Rollout = step.columns["mismatched"]
        now_NT, reference_NT = (
            run.score(model, others, ["full_logprobs"]).full_logprobs_NT for model in ("policy", "reference")
        )
        rho_N = torch.where(others.mask_NT, now_NT - reference_NT, 0.0).sum(1)
        return rho_N.mean().clamp_min(0)

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        c, z = self.config, self.reference_point(run, batch.step)
        rho_N = batch.sum_over_chosen(now.full_logprobs_NT - batch.rollout.columns[REFERENCE])
        good_N = self.good(batch)
        loss_N = kto_loss(rho_N, good_N, z, c.beta, c.desirable, c.undesirable)
        reward_N = c.beta * rho_N.detach()
        metrics = {
            "kl": batch.mean_over_responses(z.expand(len(batch))),
            "desirable": batch.mean_over_responses(good_N.to(rho_N)),
            "desirable_reward": batch.mean_over_responses(reward_N, where=self.good),
            "undesirable_reward": batch.mean_over_responses(reward_N, where=self.bad),
        }
        if (weight_N := batch.columns.get(DISTANCE)) is not None:
            loss_N = weight_N * loss_N
            metrics["coefficient"] = batch.mean_over_responses(weight_N)
            metrics["weightless"] = batch.mean_over_responses((weight_N == 0).to(weight_N))
        return Loss(batch.mean_over_responses(loss_N), metrics)


# -- reward differences ---------------------------------------------------------------------------------------------


class RDO(Component):
    """RDO-style weights (after Wang et al. 2024): a pair counts in proportion to its difference in reward.

    `dpo`, `ipo`, `simpo`, `orpo` and `rrhf` multiply the loss of each pair by the difference, 0 where it is negative;
    `kto` that of each response by its mean absolute difference to its siblings.
    """

    class Config(Options):
        """Options of `rdo`."""

        part: str | None = Field(
            None, description="the reward whose differences count, by name; null: the weighted sum of all"
        )

    config: Config
    min_samples = 2

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        gain_N = batch.reward.total_N if self.config.part is None else self._part(batch, self.config.part)
        rows_GK, real_GK = batch.rollout.groups()
        gain_GK = gain_N[rows_GK]
        both_GKK = real_GK[:, :, None] & real_GK[:, None, :]
        far_GKK = torch.where(both_GKK, (gain_GK[:, :, None] - gain_GK[:, None, :]).abs(), 0.0)
        mean_GK = far_GKK.sum(2) / (real_GK.sum(1, keepdim=True) - 1).clamp_min(1)
        distance_N = torch.zeros_like(gain_N)
        distance_N[rows_GK[real_GK]] = mean_GK[real_GK]
        return replace(batch, columns={**batch.columns, GAIN: gain_N, DISTANCE: distance_N})

    def _part(self, batch: Batch, name: str) -> Tensor:
        parts: Mapping[str, Tensor] = batch.reward.parts
        if name not in parts:
            raise ComponentError(f"`{self.name}` weighs by `{name}`; the rewards are {', '.join(parts)}")
        return batch.sum_over_chosen(parts[name]) if parts[name].ndim == 2 else parts[name]
