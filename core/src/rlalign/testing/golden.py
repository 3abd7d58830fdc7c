"""Published numbers as a pipeline: log-probs written into a policy and its reference, scores into a log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rlalign.data.example import Example
from rlalign.data.settings import Options
from rlalign.interface.component import Task
from rlalign.testing.logits import Logits

_NEVER = -1e6
"""A logit whose probability is 0 and whose multiples are still numbers."""


class GivenLogits(Logits):
    """A `logits` policy of which each logged token has the log-prob given for it.

    Response i chooses token i at every step; the last token of the vocabulary has the rest of the mass.
    """

    class Config(Logits.Config):
        """Options of `given-logits`; the sizes are those of `logits`."""

        logprobs: tuple[tuple[tuple[float, ...], ...], ...] = Field(
            description="by prompt, response and step"
        )

    config: Config

    def setup(self) -> None:
        super().setup()
        free = torch.full(self.free.shape, _NEVER, dtype=torch.float64)
        free[..., -1] = 0.0
        for prompt, responses in enumerate(self.config.logprobs):
            for i, steps in enumerate(responses):
                for t, logprob in enumerate(steps):
                    row = free[prompt * self.config.responses + i, t]
                    row[i], row[-1] = logprob, math.log(-math.expm1(logprob))
        self.free = nn.Parameter(free)


class GivenResponses(Task):
    """Prompt g's response i: token i, as often as it has steps; its stored score."""

    class Config(Options):
        """Options of `given-responses`."""

        lengths: tuple[tuple[int, ...], ...] = Field(description="steps, by prompt and response")
        scores: tuple[tuple[float, ...], ...] = Field((), description="by prompt and response")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        return [
            Example(
                id=str(g),
                prompt=str(g),
                responses=tuple(" ".join([str(i)] * steps) for i, steps in enumerate(lengths)),
                scores=self.config.scores[g] if self.config.scores else (),
            )
            for g, lengths in enumerate(self.config.lengths)
        ]


GIVEN: dict[str, type[Any]] = {"given-logits": GivenLogits, "given-responses": GivenResponses}
"""To hand to `Bench`, `session` or `run`."""

Numbers3 = Sequence[Sequence[Sequence[float]]]
"""[prompt][response][step]"""


def golden(
    logprobs: Numbers3,
    reference: Numbers3 | None = None,
    scores: Sequence[Sequence[float]] = (),
    **train: Any,
) -> dict[str, Any]:
    """The part of a pipeline that says [prompt][response][step] log-probs and [prompt][response] scores."""

    def policy(numbers: Numbers3) -> dict[str, Any]:
        sizes = {
            "prompts": len(numbers),
            "responses": max(map(len, numbers)),
            "steps": max(len(steps) for responses in numbers for steps in responses),
            "vocabulary": max(map(len, numbers)) + 1,
            "ending": False,
        }
        return {"given-logits": {**sizes, "logprobs": [[list(s) for s in r] for r in numbers]}}

    lengths = [[len(steps) for steps in responses] for responses in logprobs]
    say: dict[str, Any] = {
        "task": {"given-responses": {"lengths": lengths, "scores": [list(s) for s in scores]}},
        "policy": policy(logprobs),
        "responses": "logged",
        "train": {"iterations": 1, "prompts": len(logprobs), "dtype": "float64", "lr": 0.0, **train},
    }
    return say if reference is None else {**say, "models": {"reference": policy(reference)}}


def golden_gradient(policy: Logits, by_logprob: Sequence[Sequence[float | Sequence[float]]]) -> Tensor:
    """Σ g (δ_y − p): a loss' gradient by log-prob, [prompt][response] or with steps, as one by the free logits."""
    p = policy.free.detach().softmax(-1)
    expected = torch.zeros_like(p)
    for prompt, responses in enumerate(by_logprob):
        for i, steps in enumerate(responses):
            for t, g in enumerate(steps if isinstance(steps, Sequence) else [steps]):
                row = prompt * policy.config.responses + i
                expected[row, t] -= g * p[row, t]
                expected[row, t, i] += g
    return expected
