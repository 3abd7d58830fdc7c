"""The family: policy gradients without a value function, as one component whose options say what differs.

Legend: N responses, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Outputs, Reward, Rollout, Run, hookimpl
from rlalign.data.rollout import EPISODE
from rlalign.data.statistics import clipped_surrogate, first_single, kl_estimates, turns_of
from rlalign_plugin_reinforce.advantages import (
    episodes_of,
    mean_of_group,
    mean_of_others,
    mean_of_past,
    over_batch,
    over_draw,
    over_group,
    to_go,
    turns_to_go,
)
from rlalign_plugin_reinforce.importance import importance_weights, weight_metrics
from rlalign_plugin_reinforce.options import Family
from rlalign_plugin_reinforce.surrogates import (
    average,
    clipped_weight,
    per_action,
)


class PolicyGradient(Component):
    """−A·log π or a clipped ratio in its place: what the members of the family share."""

    class Config(Family):
        """Options of the family."""

    config: Config
    trains = ("policy",)
    unit = "response"
    responses = "sampled"

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.count, self.total = 0, 0.0
        c = self.config
        needs = ["logprobs"]
        if c.ratio != "none" and c.importance is None:
            needs.append("old_logprobs")
        if c.kl:
            needs += ["full_logprobs", "reference.full_logprobs"]
            self.models: Mapping[str, Any] = {"reference": "frozen"}
            self.regularises = True
        self.needs = tuple(needs)
        self.weighs = c.importance is not None
        self.adds_turns = c.credit == "turn"
        self.min_samples = 2 if self._compares else 1

    @property
    def _compares(self) -> bool:
        """Whether a response is compared with others to its prompt."""
        return self.config.baseline in ("group", "others") or self.config.scale == "group"

    # -- advantage ------------------------------------------------------------------------------------

    @hookimpl
    def advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch:
        if self._compares:
            self._check_comparable(rollout)
        return Batch.of(rollout, reward, self.advantage_of(rollout, reward), **self.weights(run, rollout))

    def _check_comparable(self, rollout: Rollout) -> None:
        if EPISODE not in rollout.columns:
            single = first_single(rollout)
        elif self.config.credit != "turn" or self.config.scale == "group":
            raise ComponentError(
                f"`{self.name}` compares responses to one prompt, and here each is a turn, to a prompt of its own: say "
                "`credit: turn`, which compares episodes of one start, and no `scale: group`"
            )
        else:
            place_N, start_E = episodes_of(rollout)
            alone_E = start_E.bincount()[start_E] == 1
            rows = alone_E[place_N].nonzero()[:, 0].tolist()
            single = rollout.answered[rows[0]] if rows else None
        if single is not None:
            raise ComponentError(
                f"`{self.name}` compares a response with its siblings, and example `{single.id}` has one response only"
            )

    def advantage_of(self, rollout: Rollout, reward: Reward) -> Tensor:
        """[N,1] or, where each token is paid for what came from it on, [N,T]: the reward less the baseline, scaled."""
        c, total_N, group_N, mask_NT = self.config, reward.total_N, rollout.group_N, rollout.mask_NT
        credit_NT = to_go(reward.tokens_NT, mask_NT) if c.credit == "to-go" else total_N[:, None]
        if c.credit == "turn":
            # Siblings that are over count with 0. The mean of those still there would do too; that of each turn's own
            # rewards would not: it is taken away as often as an episode has turns, which the policy decides.
            turn_NT = turns_of(rollout, f"`{self.name}: {{credit: turn}}`")
            place_N, start_E = episodes_of(rollout)
            credit_EK = turns_to_go(reward.tokens_NT, mask_NT, turn_NT, place_N)
            left_EK = credit_EK - self._baseline(credit_EK, start_E)
            place_NT = turn_NT.clamp_max(credit_EK.shape[1] - 1)
            credit_NT, advantage_NT = (
                torch.where(mask_NT, x_EK[place_N].gather(1, place_NT), 0.0) for x_EK in (credit_EK, left_EK)
            )
        else:
            advantage_NT = credit_NT - self._baseline(total_N[:, None], group_N)
        if c.scale == "group":
            return over_group(advantage_NT, total_N, group_N, bessel=c.bessel, delta=c.delta)
        if c.scale == "none" or len(rollout) == 0:
            return advantage_NT
        if c.scale == "rewards":
            return over_draw(advantage_NT, total_N, bessel=c.bessel, delta=c.delta)
        if c.scale == "batch":
            advantage_NT = advantage_NT.expand_as(mask_NT)
        among = mask_NT if c.scale == "batch" else torch.ones_like(advantage_NT, dtype=torch.bool)
        size = credit_NT.abs().max()
        return over_batch(advantage_NT, among, bessel=c.bessel, delta=c.delta, size=size)

    def _baseline(self, credit_NK: Tensor, group_N: Tensor) -> Tensor | float:
        """What each column of credits is compared with."""
        c = self.config
        if c.baseline == "past":
            return mean_of_past(self.total, self.count)
        if c.baseline == "none":
            return 0.0
        mean = mean_of_others if c.baseline == "others" else mean_of_group
        return torch.stack([mean(credit_N, group_N) for credit_N in credit_NK.T], 1)

    def weights(self, run: Run, rollout: Rollout) -> dict[str, Tensor]:
        """The columns `weight`, and `now`: the policy's log-probs when the iteration began."""
        importance = self.config.importance
        if importance is None:
            return {}
        mask_NT = rollout.mask_NT
        if bool(rollout.logprobs_NT[mask_NT].isnan().any()):
            raise ComponentError(
                f"`{self.name}: {{importance: …}}` weighs responses by the log-probs they were sampled with, and some "
                "have none; leave `importance` out, or those responses"
            )
        now_NT = torch.where(mask_NT, run.score("policy", rollout, ["logprobs"]).logprobs_NT, 0.0)
        weight = importance_weights(
            *(now_NT, rollout.logprobs_NT, mask_NT),
            importance.cap,
            importance.level,
            importance.beyond == "drop",
        )
        return {"now": now_NT, "weight": weight}

    # -- loss -----------------------------------------------------------------------------------------

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        c = self.config
        longest = c.longest or run.generation.max_new_tokens
        gain, metrics = self.gain(batch, now)
        if c.importance is not None:
            weight = batch.columns["weight"]
            gain = gain * (weight[:, None] if weight.ndim < gain.ndim else weight)
            metrics |= weight_metrics(batch, weight, c.importance.cap, c.importance.beyond == "drop")
        value = -average(batch, gain, c.mean, longest)
        if c.kl:
            x_NT = now.full_logprobs_NT - batch.rollout.columns["reference.full_logprobs"]
            kl_NT = kl_estimates(x_NT)[c.estimator]
            if c.weigh_kl:
                kl_NT = (now.logprobs_NT - self.old(batch)).exp() * kl_NT
            kl = average(batch, kl_NT, c.mean, longest)
            value, metrics = value + c.kl * kl, {**metrics, "reference_kl": kl}
        return Loss(value, metrics)

    def gain(self, batch: Batch, now: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """What is maximised at each action, [N,T] or [N], and what is worth watching."""
        c, mask_NT = self.config, batch.rollout.mask_NT
        advantage = batch.advantage_NT
        logprobs = per_action(now.logprobs_NT, mask_NT, c.ratio)
        if c.ratio == "none":
            return advantage * logprobs, {}
        if logprobs.ndim == 1:  # the same at every chosen step
            advantage = advantage.gather(1, mask_NT.int().argmax(1, keepdim=True))[:, 0]
        log_ratio = per_action(now.logprobs_NT - self.old(batch), mask_NT, c.ratio)
        if c.clipped == "surrogate":
            gain, acts = clipped_surrogate(log_ratio, advantage, c.clip, c.largest)
        else:
            gain, acts = clipped_weight(log_ratio, logprobs, advantage, c.clip)
        mean = batch.mean_over_responses if gain.ndim == 1 else batch.mean_over_tokens
        moved = mean(kl_estimates(-log_ratio.detach())["k3"])  # KL(old ‖ now)
        return gain, {"clip_fraction": mean(acts.to(gain)), "kl": moved}

    def old(self, batch: Batch) -> Tensor:
        """[N,T]: the log-probs that ratios are taken to, the policy's when the iteration began."""
        known: Tensor = batch.old_logprobs_NT if self.config.importance is None else batch.columns["now"]
        return known

    # -- the moving average ---------------------------------------------------------------------------

    @hookimpl
    def iteration_done(self, rollout: Rollout, reward: Reward) -> None:
        if self.config.baseline == "past":
            new_n = reward.total_N[rollout.new_N]
            self.count += len(new_n)
            self.total += float(new_n.double().sum())

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "total": self.total} if self.config.baseline == "past" else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.total = int(state.get("count", 0)), float(state.get("total", 0.0))
