"""The options that all members of the family share, what of them cannot go together, and how a member sets them."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, field_validator, model_validator

from rlalign import Options
from rlalign.data.statistics import Clip


class Importance(Options):
    """How responses that another policy sampled are weighed."""

    cap: float | None = Field(2.0, gt=0, description="weights above it count as it; null: no cap")
    level: Literal["token", "sequence"] = Field(
        "token", description="a weight for each token, or one for a whole response"
    )
    beyond: Literal["cap", "drop"] = Field(
        "cap", description="what a weight above the cap counts as: the cap, or nothing"
    )


class Family(Options):
    """Options that all members share."""

    baseline: Literal["none", "past", "group", "others"] = Field(
        "none",
        description="what a reward is compared with: nothing, the mean of all responses of earlier iterations, of "
        "the responses to the same prompt, or of the others to it",
    )
    credit: Literal["response", "to-go", "turn"] = Field(
        "response",
        description="what a token is paid for: the whole reward, what came from it on, or in an environment what came "
        "from its turn on, compared with what came from the same turn on in others",
    )
    scale: Literal["none", "group", "rewards", "responses", "batch"] = Field(
        "none",
        description="what the advantage is divided by: nothing; the standard deviation of the rewards of its group, "
        "or of all `rewards` in the draw; or that of the advantages in the draw, of `responses` or of all tokens, "
        "whose mean is then taken away too",
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
    largest: float | None = Field(
        None,
        gt=1,
        description="the ratio counts as this at most where the advantage is negative, which `clip` leaves without a "
        "bound (dual clip); null for no bound",
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
    weigh_kl: bool = Field(
        False,
        description="weigh that KL by the ratio, with its gradient: then k3's is that of KL(π ‖ reference), on samples "
        "of the policy that the ratio is taken to",
    )
    importance: Importance | None = Field(
        None,
        description="weigh responses that another policy sampled by min(π/sampler, cap), π the policy when the "
        "iteration began: {cap: 2.0, level: token or sequence, beyond: cap or drop}; null: no weights",
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
    def _makes_sense(self) -> Family:
        for wrong, message in _senseless(self):
            if wrong:
                raise ValueError(message)
        return self


def _senseless(c: Family) -> list[tuple[bool, str]]:
    """What cannot go together, and why."""
    said, whole = c.model_fields_set, c.ratio in ("sequence", "geometric")
    return [
        (
            c.ratio == "none" and bool(said & {"clip", "clipped"}),
            "`clip` and `clipped` are about a ratio, and there is none; set `ratio`, or leave them out",
        ),
        (
            c.largest is not None and (c.ratio == "none" or c.clipped == "weight"),
            "`largest` bounds the ratio of a clipped surrogate; set `ratio` and `clipped: surrogate`, or leave it out",
        ),
        (
            whole and c.credit != "response",
            f"`ratio: {c.ratio}` makes the response one action with one advantage, and `credit: {c.credit}` gives each "
            f"{c.credit.replace('to-go', 'token')} its own; use `ratio: token`",
        ),
        (
            whole and c.mean in ("tokens", "constant"),
            f"`ratio: {c.ratio}` counts each response once, so there are no tokens for `mean: {c.mean}` to count; use "
            "`mean: response-means`",
        ),
        (
            whole and c.importance is not None and c.importance.level == "token",
            f"`ratio: {c.ratio}` makes the response one action, which has one weight; use "
            "`importance: {level: sequence}`",
        ),
        (
            c.scale == "responses" and c.credit != "response",
            f"`scale: responses` is over one advantage for each response, and `credit: {c.credit}` gives each "
            f"{c.credit.replace('to-go', 'token')} its own; use `scale: batch`",
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
            c.weigh_kl and (c.kl == 0 or c.ratio != "token"),
            "`weigh_kl` weighs the KL in the loss by the ratio of each token; set `kl` and `ratio: token`, or leave it "
            "out",
        ),
        (
            c.importance is not None and c.importance.beyond == "drop" and c.importance.cap is None,
            "`importance: {beyond: drop}` drops what is above the cap, and there is none; set `cap`",
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
