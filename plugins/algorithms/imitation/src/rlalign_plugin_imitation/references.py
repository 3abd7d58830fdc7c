"""Responses that a task keeps in `meta["references"]`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, Field

from rlalign import Component, ComponentError, Example, Options, Rollout, Run, hookimpl


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
