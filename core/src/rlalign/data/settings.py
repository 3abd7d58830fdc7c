"""Settings that travel with the data: how a response was sampled, how much is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlalign.data import limits

Role = Literal["frozen", "lagging", "value"]

Unit = Literal["response", "group", "step"]


class Options(BaseModel):
    """Options of a component. Every field carries a `description`: it is the documentation."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


Positive = Annotated[int, Field(gt=0, le=limits.COUNT)]

Natural = Annotated[int, Field(ge=0, le=limits.COUNT)]

Bytes = Annotated[
    int,
    BeforeValidator(
        lambda said: limits.in_bytes(said) if isinstance(said, str) else said,
        json_schema_input_type=Annotated[int, Field(gt=0)] | str,
    ),
    Field(gt=0),
]
"""Also said as `4 GiB`."""


class Sampling(Options):
    """`generation`: how responses are sampled."""

    samples: int = Field(1, gt=0, le=limits.SAMPLES, description="responses per prompt")
    temperature: float = Field(
        1.0, ge=1e-8, description="divides the logits, in sampling and in every log-prob"
    )
    top_k: Natural = Field(0, description="keep the k most probable tokens; 0 keeps all")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the smallest set of this probability")
    min_p: float = Field(
        0.0, ge=0, le=1, description="keep tokens of at least this share of the largest probability"
    )
    min_new_tokens: int = Field(
        0, ge=0, le=limits.NEW_TOKENS, description="the response may not end before this many tokens"
    )
    max_new_tokens: int = Field(
        64, gt=0, le=limits.NEW_TOKENS, description="the response is cut after this many tokens"
    )
    stop: tuple[str, ...] = Field((), description="a response ends when its text holds one of these")
    greedy: bool = Field(False, description="take the most probable token (for evaluation only)")
    beams: int = Field(
        1,
        gt=0,
        le=limits.SAMPLES,
        description="width of a beam search, where the policy has one (for evaluation only)",
    )
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="a beam search divides the sum of log-probs by the length to this power: more favours longer ones",
    )

    @property
    def narrows(self) -> bool:
        """Whether a truncation may leave fewer tokens than the vocabulary holds."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def draws_as(self, other: Sampling) -> bool:
        """Whether responses are drawn at random: from all tokens, or from as few of them as `other` leaves."""
        chosen = ("temperature", "top_k", "top_p", "min_p", "min_new_tokens")
        same = all(getattr(self, name) == getattr(other, name) for name in chosen)
        whole = not self.narrows and self.min_new_tokens == 0
        return (same or whole) and not self.greedy and self.beams == 1


class Schedule(Options):
    """How a learning rate moves with the phase's progress."""

    shape: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="linear and cosine fall to `floor`"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the phase in which it rises from zero")
    floor: float = Field(0.0, ge=0, le=1, description="share of the learning rate left at the end")


class Mismatch(Options):
    """How the gradients of sampled tokens count where those were sampled otherwise than the policy computes."""

    by: Literal["token", "response"] = Field(
        "token", description="whose ratio: each token's own, or the product over its response"
    )
    mode: Literal["truncate", "mask"] = Field(
        "truncate",
        description="truncate: the ratio, `cap` at most; mask: the ratio, and 0 where it lies outside 1/cap … cap",
    )
    cap: float = Field(2.0, ge=1, description="the largest ratio that counts")


class Train(Options):
    """`train`: how much is learned, how fast."""

    iterations: Positive | None = Field(
        None, description="draws of `prompts` prompts, each followed by an update"
    )
    passes: float | None = Field(
        None, gt=0, le=limits.COUNT, description="passes over the data; `iterations` follows from it"
    )
    prompts: int = Field(64, gt=0, le=limits.PROMPTS, description="prompts per iteration")
    epochs: Positive = Field(1, description="passes over one iteration's batch")
    minibatches: int = Field(1, gt=0, le=limits.PROMPTS, description="optimiser steps per epoch")
    minibatch: Positive | None = Field(
        None, description="groups per optimiser step, instead of `minibatches`"
    )
    refill: Natural = Field(
        0, description="further draws while fewer than `prompts` groups survive `advantage`"
    )
    lr: float = Field(1e-5, ge=0, description="learning rate of the policy, and of what `lrs` does not name")
    lrs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="learning rates of other models, by name"
    )
    schedule: Schedule = Field(Schedule(), description="how the learning rates move with progress")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay rates")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay of weight matrices")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null does not clip")
    dropout: bool = Field(False, description="leave dropout on while learning")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="what is computed in; losses and probabilities are float32 at least"
    )
    weights: Literal["bfloat16"] | None = Field(
        None,
        description="bfloat16: weights too are held in half precision, and the optimiser keeps float32 masters of "
        "those that learn; null: they are held in full precision",
    )
    mismatch: Mismatch | None = Field(
        None,
        description="weigh the gradient of each sampled token's log-prob by its probability over that when it was "
        "sampled: `by`, `mode`, `cap` (`{}`: by token, truncated at 2); null: do not. It does nothing in a phase where "
        "a loss weighs responses so itself",
    )
    recompute: bool = Field(
        False,
        description="compute the activations of layers again in the backward pass instead of keeping them, where the "
        "policy can: less memory, about a third more time",
    )
    budget: Positive | None = Field(
        None, description="padded tokens per micro-batch; found by itself if not given"
    )
    on_bad_reward: Literal["stop", "drop"] = Field(
        "stop",
        description="what a reward does that fails or is NaN or infinite: end the run, or have the prompt's group "
        "left out",
    )

    keep_responses: bool = Field(
        False,
        description="write all responses down with their scores, for `rlalign export --samples`; `collect` does",
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Train:
        if self.iterations is not None and self.passes is not None:
            raise ValueError("say `iterations` or `passes`, not both")
        if self.minibatch is not None and self.minibatches != 1:
            raise ValueError("say `minibatches` or `minibatch`, not both")
        if self.weights is not None and self.dtype != "bfloat16":
            raise ValueError("weights in bfloat16 are computed with in bfloat16: say `dtype: bfloat16` too")
        return self

    @property
    def held(self) -> Literal["float32", "bfloat16", "float64"]:
        """What the weights of all models are held in."""
        return "float64" if self.dtype == "float64" else self.weights or "float32"


class Save(Options):
    """`checkpoints`: how often a checkpoint is written, and which are kept."""

    every: Positive | None = Field(
        None,
        description="iterations between checkpoints; null: each, less often once writing takes 5 % of the time",
    )
    last: Positive = Field(2, description="how many of the last ones are kept")
    best: str | dict[str, Literal["high", "low"]] | None = Field(
        None,
        description="a metric of evaluations, `eval/NAME`: the checkpoint where it was highest is kept too; "
        "`{eval/NAME: low}`: where it was lowest",
    )

    @model_validator(mode="after")
    def _one_best(self) -> Save:
        if isinstance(self.best, dict) and len(self.best) != 1:
            raise ValueError("`best` goes by one metric: `eval/NAME`, or `{eval/NAME: low}`")
        if self.best_by is not None and not self.best_by[0].startswith("eval/"):
            raise ValueError(
                f"`best` goes by a metric of evaluations, `eval/NAME` as in metrics.jsonl; `{self.best_by[0]}` is none"
            )
        return self

    @property
    def best_by(self) -> tuple[str, Literal["high", "low"]] | None:
        """The metric by which the best checkpoint is told, and which end of it is good."""
        if self.best is None:
            return None
        return (self.best, "high") if isinstance(self.best, str) else next(iter(self.best.items()))
