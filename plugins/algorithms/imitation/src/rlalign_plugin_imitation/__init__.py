"""Imitation: raise the likelihood of responses that somebody wrote, prompt and all that is not theirs left out.

A prompt is never part of the loss, and it is never joined with a response: the policy reads both for itself,
and the token that ends a response is one of its steps (where it finished), so that ending is learned too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, Field

from rlalign import Batch, Component, ComponentError, Example, Loss, Options, Outputs, Rollout, Run, hookimpl
from rlalign_plugin_imitation.weighted import GOLD, WBC

__all__ = ["GOLD", "SFT", "WBC", "HeldOut", "References", "joined", "references_of"]


class SFT(Component):
    """Supervised learning: −log π of logged responses, a mean over their tokens."""

    class Config(Options):
        """Options of `sft`."""

        mean: Literal["tokens", "responses", "sums"] = Field(
            "tokens",
            description="`tokens`: every token counts the same; `responses`: every response does, however long; "
            "`sums`: of responses' sums over their tokens, as papers write the likelihood",
        )

    config: Config
    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"
    responses = "logged"
    scored = False

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        nll_NT = -now.logprobs_NT
        per_token = batch.mean_over_tokens(nll_NT)
        if self.config.mean == "tokens":
            loss = per_token
        else:
            nll_N = batch.sum_over_chosen(nll_NT)
            if self.config.mean == "responses":
                nll_N = nll_N / batch.rollout.mask_NT.sum(1)
            loss = batch.mean_over_responses(nll_N)
        return Loss(loss, {"nll": per_token.detach()})


class HeldOut(Component):
    """A metric for `evaluate.use`: how well the policy predicts the examples' logged responses, else their references.

    `nll` is −log π, a mean over all tokens, ends included; `perplexity` is exp of it.
    """

    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> Mapping[str, float]:
        examples = [e if e.responses else replace(e, responses=references_of(e)) for e in rollout.examples]
        logged = run.models.policy.encode(examples)
        logprobs_NT = run.score("policy", logged, ["full_logprobs"]).full_logprobs_NT
        total = torch.where(logged.mask_NT, logprobs_NT, 0.0).double().sum()
        nll = -float(total) / int(logged.mask_NT.sum())
        return {"nll": nll, "perplexity": math.exp(nll) if nll < 700 else math.inf}


class References(Component):
    """Responses from `meta["references"]`, for tasks that keep the right answers there. No scores."""

    class Config(Options):
        """Options of `references`."""

        pick: Literal["each", "one"] = Field(
            "each",
            description="`each`: every reference is a response; `one`: one of them, at random in every pass",
        )
        join: str | None = Field(
            None,
            description="put before a reference where no white space parts it from a text prompt; "
            "null: nothing, and say so if words run together",
        )

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self._warned = False

    def respond(self, run: Run, examples: Sequence[Example], count: int | None) -> Rollout:
        """Also a part of `mix`: `count` different references of each example."""
        count = 1 if count is None and self.config.pick == "one" else count
        answered = [self._answered(run, example, count) for example in examples]
        self._warn(answered)
        rollout = run.models.policy.encode(answered)
        # The examples themselves stay as the task gave them.
        return replace(rollout, examples=tuple(examples))

    def _answered(self, run: Run, example: Example, count: int | None) -> Example:
        references = references_of(example)
        if count is not None:
            if len(references) < count:
                raise ComponentError(
                    f"example `{example.id}` has {len(references)} references, {count} are needed"
                )
            # By its id: the same whatever else is drawn, and another one in another iteration.
            generator = run.rng("references", run.iteration, example.id)
            order = torch.randperm(len(references), generator=generator)[:count].sort().values
            references = tuple(references[i] for i in order.tolist())
        if self.config.join and isinstance(example.prompt, str):
            references = tuple(joined(example.prompt, r, self.config.join) for r in references)
        return replace(example, responses=references, scores=(), finished=())

    def _warn(self, examples: Sequence[Example]) -> None:
        if self.config.join is not None or self._warned:
            return
        glued = [(str(e.prompt), r) for e in examples for r in e.responses if _glued(e.prompt, r)]
        if glued:
            self._warned = True
            prompt, reference = glued[0]
            warnings.warn(
                f"`{self.name}`: a reference follows its prompt without a space, and a causal policy would learn to "
                f"write …{prompt[-12:]}{reference[:12]}…; `join: ' '` puts one in, `join: ''` means it is right",
                stacklevel=2,
            )

    @hookimpl
    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        return self.respond(run, examples, None)


def references_of(example: Example) -> tuple[str, ...]:
    """The texts in `meta["references"]`."""
    found = example.meta.get("references")
    references = (found,) if isinstance(found, str) else tuple(found or ())
    if not references or not all(isinstance(r, str) for r in references):
        raise ComponentError(
            f"example `{example.id}` has nothing to learn from: `meta` holds no texts under `references` "
            f"(it holds: {', '.join(example.meta) or 'nothing'})"
        )
    return references


def joined(prompt: str, response: str, join: str) -> str:
    """The response as it follows the prompt: `join` comes first where no white space parts the two."""
    if not prompt or not response or prompt[-1].isspace() or response[0].isspace():
        return response
    return join + response


def _glued(prompt: object, response: str) -> bool:
    """Whether two words would run together. Scripts that put no spaces between words begin further up."""
    if not isinstance(prompt, str) or not prompt or not response or prompt[-1].isspace():
        return False
    return response[0].isalnum() and max(prompt[-1], response[0]) < "\u2e80"
