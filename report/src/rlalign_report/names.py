"""Where a figure belongs on the page, and what it is in words. A name that nobody knows has its place too."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class Section(NamedTuple):
    """A part of the page with charts."""

    key: str
    title: str
    about: str


SECTIONS = (
    Section("reward", "Reward", "Each iteration's mean reward, its parts, and what rewards report."),
    Section("kl", "KL", "How far the policy has moved, in nats."),
    Section("policy", "Policy update", "Losses, clipping, entropy, gradients and learning rates."),
    Section("value", "Value fit", "How well the value function predicts returns."),
    Section("lengths", "Lengths", "How long responses are, and whether they end by themselves."),
    Section("groups", "Groups", "Prompts, filters, and groups without a difference."),
    Section(
        "sampler", "Sampler and replay", "How far what was sampled is from what learns; remembered responses."
    ),
    Section("time", "Time", "Seconds of an iteration and of its stages."),
    Section("memory", "Memory", "What the run logged of its memory."),
    Section("other", "Other metrics", "All else that components logged."),
    Section("evaluation", "Evaluations", "What was measured on the evaluated examples."),
)

_RULES = (
    ("evaluation", r"^eval/"),
    ("time", r"^time/"),
    ("memory", r"(^|[/_])mem(ory)?([/_]|$)"),
    ("sampler", r"^(sampler|replay)/"),
    ("groups", r"^groups(/|$)|^(refills|left_out|dropped)$"),
    ("reward", r"^reward/"),
    ("kl", r"(^|[/_])(kl|k[123]|per_response|coef)$"),
    ("value", r"(^|/)(values?|returns?|explained_variance|value_\w+|\w+_value_error)(/|$)"),
    (
        "policy",
        r"(^|[/_])(loss|entropy|lrs?|grad_norm|ratio|advantages?|clip\w*|\w*clip_fraction|\w+_steps)(/|$)",
    ),
    ("lengths", r"^(length|finished|tokens|responses)$"),
)

_KNOWN = {
    "reward/total": "mean over responses of the weighted sum of all rewards",
    "length": "mean steps of a response",
    "finished": "share of responses that ended by themselves",
    "responses": "responses of the iteration",
    "tokens": "steps that the policy chose in the iteration",
    "groups": "prompts in the training batch, after filters",
    "groups/tied": "share of groups whose responses all earned the same",
    "loss": "weighted sum of all losses",
    "lr": "learning rate of the policy",
    "grad_norm": "norm of the gradient before clipping",
    "optimiser_steps": "optimiser steps of the iteration",
    "empty_steps": "steps that no response was left for",
    "dropped_steps": "steps that were dropped",
    "sampler/gap": "mean of abs(log ratio) between sampling and learning",
    "sampler/kl": "KL between sampling and learning",
    "sampler/ratio": "mean ratio between sampling and learning",
    "time/iteration": "seconds of the iteration",
    "time/evaluate": "seconds of the evaluation",
    "eval/total": "the phase's own reward on the evaluated responses",
    "eval/length": "mean steps of an evaluated response",
    "eval/finished": "share of evaluated responses that ended by themselves",
}
_ENDINGS = {
    "k1": "estimate of the KL to the reference, a mean over steps",
    "k2": "second estimate of the KL, a mean over steps",
    "k3": "third estimate of the KL, a mean over steps",
    "per_response": "KL to the reference, summed over a response",
    "coef": "coefficient of the price",
    "clip_fraction": "share of steps whose ratio was clipped",
    "explained_variance": "share of the returns' variance that the value explains: 1 is perfect",
    "entropy": "entropy of the policy at the steps it chose, in nats",
}


COUNTS = ("responses", "tokens")
"""Of which an evaluation has a number of its own, which says nothing beside that of training."""


def section(name: str, rewards: Collection[str] = ()) -> str:
    """The key of the section a figure belongs to; `rewards` are the names of the run's rewards."""
    for key, rule in _RULES:
        if re.search(rule, name):
            return key
    return "reward" if name.partition("/")[0] in rewards else "other"


def about(name: str) -> str:
    """What a figure is, where it is known."""
    return _KNOWN.get(name) or _ENDINGS.get(name.rpartition("/")[2], "")


def order(name: str) -> int:
    """Within a section: the whole before its parts."""
    whole = ("reward/total", "eval/total", "time/iteration", "loss", "length")
    return whole.index(name) if name in whole else len(whole)
