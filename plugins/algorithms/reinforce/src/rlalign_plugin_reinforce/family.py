"""The family: policy gradients without a value function, as one component whose options say what differs.

Legend: N responses, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor

from rlalign import Batch, Component, ComponentError, Loss, Options, Outputs, Reward, Rollout, Run, hookimpl
from rlalign.data.statistics import first_single
from rlalign_plugin_reinforce import advantages
from rlalign_plugin_reinforce.importance import importance_weights, weight_metrics
from rlalign_plugin_reinforce.surrogates import (
    Clip,
    average,
    clipped_surrogate,
    clipped_weight,
    kl_estimate,
    per_action,
)


class Importance(Options):
    """How responses that another policy sampled are weighed."""

    cap: float | None = Field(2.0, gt=0, description="weights above it count as it; null: no cap")
    level: Literal["token", "sequence"] = Field(
        "token", description="a weight for each token, or one for a whole response"
    )


class PolicyGradient(Component):
    """−A·log π or a clipped ratio in its place: what the members of the family share."""

    class Config(Options):
        """Options that all members share."""

        baseline: Literal["none", "past", "group", "others"] = Field(
            "none",
            description="what a reward is compared with: nothing, the mean of all responses of earlier iterations, of "
            "the responses to the same prompt, or of the others to it",
        )
        credit: Literal["response", "to-go"] = Field(
            "response", description="what a token is paid for: the whole reward, or what came from it on"
        )
        scale: Literal["none", "group", "batch"] = Field(
            "none",
            description="what the advantage is divided by: nothing, the standard deviation of the rewards of its "
            "group, or that of all tokens' advantages in the draw, whose mean is then taken away too",
        )
        bessel: bool = Field(True, description="that deviation over n − 1 (true) or n (false)")
        delta: float = Field(1e-4, ge=0, description="δ: added to that deviation")
        ratio: Literal["none", "token", "sequence", "geometric"] = Field(
            "none",
            description="π/π_old in place of log π: of each token, of the whole response (the product), or its "
            "geometric mean over tokens; with the last two the response is one action, counted once",
        )
        clip: Clip | None = Field(
            None,
            description="[low, high]: the ratio counts within 1 − low and 1 + high; null for no bound",
        )
        clipped: Literal["surrogate", "weight"] = Field(
            "surrogate",
            description="min(ρA, clip(ρ)A), which stops learning from what left the bounds; or clip(ρ)·A·log π with "
            "clip(ρ) a constant, which does not",
        )
        mean: Literal["response-sums", "response-means", "tokens", "constant"] = Field(
            "response-sums",
            description="the mean over responses of the sum over their tokens, of the mean over them, or of the sum "
            "over `longest`; or the mean over all tokens of the optimiser step",
        )
        longest: int | None = Field(
            None,
            gt=0,
            description="the tokens that `mean: constant` divides by; null: `generation.max_new_tokens`",
        )
        kl: float = Field(0.0, ge=0, description="β: weight of a KL to the reference in the loss")
        estimator: Literal["k2", "k3"] = Field(
            "k3",
            description="of that KL: x²/2, whose gradient is that of KL(π ‖ reference), or e⁻ˣ − 1 + x, whose gradient "
            "is that of KL(reference ‖ π); x = log π − log reference",
        )
        importance: Importance | None = Field(
            None,
            description="weigh responses that another policy sampled by min(π/sampler, cap), π the policy when the "
            "iteration began: {cap: 2.0, level: token or sequence}; null: no weights",
        )

        @field_validator("clip")
        @classmethod
        def _bounds(cls, clip: Clip | None) -> Clip | None:
            if clip is not None and any(bound is not None and bound < 0 for bound in clip):
                raise ValueError("how far the ratio may leave 1, down and up: two numbers of 0 or more")
            return clip

        @field_validator("estimator", mode="before")
        @classmethod
        def _has_a_gradient(cls, said: Any) -> Any:
            if said == "k1":
                raise ValueError(
                    "in a loss, k1's gradient is zero on average, so it holds nothing; use k2, or list `kl` under "
                    "`rewards`"
                )
            return said

        @model_validator(mode="after")
        def _makes_sense(self) -> PolicyGradient.Config:
            for wrong, message in _senseless(self):
                if wrong:
                    raise ValueError(message)
            return self

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
        self.min_samples = 2 if self._compares else 1

    @property
    def _compares(self) -> bool:
        """Whether a response is compared with others to its prompt."""
        return self.config.baseline in ("group", "others") or self.config.scale == "group"

    # -- advantage ------------------------------------------------------------------------------------

    @hookimpl
    def advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch:
        if self._compares and (single := first_single(rollout)):
            raise ComponentError(
                f"`{self.name}` compares a response with its siblings, and example `{single.id}` has one response only"
            )
        return Batch.of(rollout, reward, self.advantage_of(rollout, reward), **self.weights(run, rollout))

    def advantage_of(self, rollout: Rollout, reward: Reward) -> Tensor:
        """[N] or [N,T]: the reward less the baseline, scaled."""
        c, total_N, group_N = self.config, reward.total_N, rollout.group_N
        advantage = total_N if c.credit == "response" else advantages.to_go(reward.tokens_NT, rollout.mask_NT)
        if c.baseline == "past":
            advantage = advantage - advantages.mean_baseline(self.total, self.count)
        elif c.baseline != "none":
            of = advantages.mean_of_group if c.baseline == "group" else advantages.mean_of_others
            baseline_N = of(total_N, group_N)
            advantage = advantage - (baseline_N if advantage.ndim == 1 else baseline_N[:, None])
        if c.scale == "group":
            deviation_N = advantages.deviation_of_group(total_N, group_N, c.bessel)
            deviation = deviation_N if advantage.ndim == 1 else deviation_N[:, None]
            advantage = advantages.over(advantage, deviation, c.delta)
        elif c.scale == "batch":
            spread_NT = advantage[:, None].expand_as(rollout.mask_NT) if advantage.ndim == 1 else advantage
            advantage = advantages.standardised_over_tokens(spread_NT, rollout.mask_NT, c.bessel, c.delta)
        return advantage

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
        weight = importance_weights(now_NT, rollout.logprobs_NT, mask_NT, importance.cap, importance.level)
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
            metrics |= weight_metrics(batch, weight, c.importance.cap)
        value = -average(batch, gain, c.mean, longest)
        if c.kl:
            x_NT = now.full_logprobs_NT - batch.rollout.columns["reference.full_logprobs"]
            kl = average(batch, kl_estimate(x_NT, c.estimator), c.mean, longest)
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
        old_NT = batch.old_logprobs_NT if c.importance is None else batch.columns["now"]
        log_ratio = per_action(now.logprobs_NT - old_NT, mask_NT, c.ratio)
        if c.clipped == "surrogate":
            gain, acts = clipped_surrogate(log_ratio, advantage, c.clip)
        else:
            gain, acts = clipped_weight(log_ratio, logprobs, advantage, c.clip)
        mean = batch.mean_over_responses if gain.ndim == 1 else batch.mean_over_tokens
        moved = mean(kl_estimate(-log_ratio.detach(), "k3"))  # KL(old ‖ now)
        return gain, {"clip_fraction": mean(acts.to(gain)), "kl": moved}

    # -- the moving average ---------------------------------------------------------------------------

    @hookimpl
    def iteration_done(self, reward: Reward) -> None:
        if self.config.baseline == "past":
            self.count += len(reward.total_N)
            self.total += float(reward.total_N.double().sum())

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "total": self.total} if self.config.baseline == "past" else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.total = int(state.get("count", 0)), float(state.get("total", 0.0))


def _senseless(c: PolicyGradient.Config) -> list[tuple[bool, str]]:
    """What cannot go together, and why."""
    said, whole = c.model_fields_set, c.ratio in ("sequence", "geometric")
    return [
        (
            c.ratio == "none" and bool(said & {"clip", "clipped"}),
            "`clip` and `clipped` are about a ratio, and there is none; set `ratio`, or leave them out",
        ),
        (
            whole and c.credit == "to-go",
            f"`ratio: {c.ratio}` makes the response one action with one advantage, and `credit: to-go` gives each "
            "token its own; use `ratio: token`",
        ),
        (
            whole and c.mean == "constant",
            f"`ratio: {c.ratio}` counts each response once, so there is no length for `mean: constant` to divide by; "
            "use `mean: response-sums`",
        ),
        (
            whole and c.importance is not None and c.importance.level == "token",
            f"`ratio: {c.ratio}` makes the response one action, which has one weight; use `importance: {{level: "
            "sequence}}`",
        ),
        (
            c.scale == "none" and bool(said & {"bessel", "delta"}),
            "`bessel` and `delta` are about a deviation, and nothing is divided by one; set `scale`, or leave them out",
        ),
        (
            c.mean != "constant" and "longest" in said,
            f"`longest` is what `mean: constant` divides by, and this is `mean: {c.mean}`; leave it out",
        ),
        (
            c.kl == 0 and "estimator" in said,
            "`estimator` is of a KL in the loss, and its weight `kl` is 0; set `kl`, or leave it out",
        ),
    ]


C = TypeVar("C", bound=BaseModel)


def preset(**values: Any) -> Callable[[type[C]], type[C]]:
    """A class decorator: these options have other defaults, and stay otherwise as they are."""

    def changed(config: type[C]) -> type[C]:
        for name, value in values.items():
            config.model_fields[name] = copy(config.model_fields[name])
            config.model_fields[name].default = value
        config.model_rebuild(force=True)
        return config

    return changed
