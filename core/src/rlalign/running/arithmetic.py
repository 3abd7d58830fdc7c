"""What an iteration comes to: responses, tokens, optimiser steps; and what to change where that is uneven."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rlalign.costs.shape import Work
from rlalign.running.amounts import counted
from rlalign.running.plan import PhasePlan

FEW, MANY = 8, 1024
"""Responses of an optimiser step below which it is noisy, and above which an iteration could take several."""


@dataclass(frozen=True)
class Arithmetic:
    """The batch of a phase in numbers."""

    prompts: int
    samples: int
    """Responses to each."""
    sampled: bool
    longest: int
    """Tokens of a response at most; of logged ones, on average."""
    row: int
    """The same with a prompt."""
    epochs: int = 1
    groups: tuple[int, ...] = ()
    """Prompts of each optimiser step of an epoch; empty where nothing is learned."""
    iterations: int | None = None
    """Of the phase; None: not known before all of the data is read."""
    data: int | None = None
    """Examples to draw from, where that is known."""
    micro: int | None = None
    """Forward and backward passes of an optimiser step, about."""
    budget: int | None = None
    """Padded tokens of each at most."""

    @property
    def responses(self) -> int:
        return self.prompts * self.samples

    @property
    def steps(self) -> int:
        """Optimiser steps of an iteration."""
        return self.epochs * sum(size > 0 for size in self.groups)

    def facts(self) -> dict[str, Any]:
        """As data."""
        total = None if self.iterations is None else self.iterations * self.steps
        sizes = {"least": min(self.groups), "most": max(self.groups)} if self.groups else None
        found = {"responses": self.responses, "steps": self.steps, "steps_in_all": total}
        return {**asdict(self), "groups": sizes, **found, "advice": list(self.advice())}

    def lines(self) -> Iterator[str]:
        """In words: an iteration, its optimiser steps, the phase."""
        word = "samples" if self.sampled else "logged responses"
        length = counted(self.longest, "token") + ("" if self.sampled else " on average")
        about = "at most " if self.sampled else "about "
        yield f"{counted(self.prompts, 'prompt')} × {self.samples:,} {word} = {counted(self.responses, 'response')}"
        total = counted(self.responses * self.longest, "token")
        yield f"{counted(self.responses, 'response')} × {length} = {about}{total}"
        if self.groups:
            yield self._steps()
        if self.iterations is not None:
            yield self._phase()

    def _steps(self) -> str:
        low, high = min(self.groups), max(self.groups)
        times = f"{counted(self.epochs, 'epoch')} × " if self.epochs > 1 else ""
        size = f"{low:,} to {counted(high, 'prompt')}" if low < high else counted(high, "prompt")
        told = f"{times}{counted(len(self.groups), 'minibatch', 'minibatches')} of {size} "
        told += f"({counted(high * self.samples, 'response')}) = {counted(self.steps, 'optimiser step')}"
        if self.micro is not None:
            told += f", each in {counted(self.micro, 'micro-batch', 'micro-batches')}"
        return told

    def _phase(self) -> str:
        assert self.iterations is not None
        told = f"{counted(self.iterations, 'iteration')}: {counted(self.iterations * self.responses, 'response')}"
        if self.groups:
            told += f", {counted(self.iterations * self.steps, 'optimiser step')}"
        if self.data:
            told += f", {self.iterations * self.prompts / self.data:.3g} passes over {counted(self.data, 'prompt')}"
        return told

    def advice(self) -> Iterator[str]:
        """What could be said otherwise in `train`, and why."""
        if not self.groups:
            return
        count, low, high = len(self.groups), min(self.groups), max(self.groups)
        if low == 0:
            yield (
                f"{count} minibatches of {counted(self.prompts, 'prompt')}: {count - self.prompts} of them are empty; "
                f"say `train.minibatches` of {self.prompts} at most"
            )
        elif low < high:
            even = nearest_divisor(self.prompts, count)
            below, above = self.prompts // count * count, -(-self.prompts // count) * count
            yield (
                f"{counted(self.prompts, 'prompt')} do not divide into {count} minibatches, so that an optimiser step "
                f"learns from {low} or from {high}: say `train.minibatches: {even}`, or `train.prompts` of {below} or "
                f"{above}"
            )
        if low and count > 1 and high * self.samples < FEW:
            fewer = nearest_divisor(self.prompts, max(1, self.responses // FEW))
            yield (
                f"an optimiser step learns from {counted(high * self.samples, 'response')}, which is noisy: "
                f"`train.minibatches: {fewer}` gives it {self.responses // fewer}"
            )
        if count == 1 and self.responses > MANY and self.prompts > 1:
            more = nearest_divisor(self.prompts, math.ceil(self.responses / MANY * 2))
            if more > 1:
                yield (
                    f"an iteration's {self.responses:,} responses are one optimiser step: `train.minibatches: {more}` "
                    f"learns in {more} steps of {self.responses // more:,}, at the same cost"
                )
        if self.budget is not None and self.row > self.budget:
            yield (
                f"a prompt with its longest response has {self.row:,} tokens, more than the {self.budget:,} of a "
                "micro-batch: it is one by itself and takes more memory than was planned with; say less "
                "`generation.max_new_tokens`"
            )


def arithmetic(
    plan: PhasePlan, work: Work, *, data: int | None = None, budget: int | None = None, once: bool = False
) -> Arithmetic:
    """Of a phase. `budget`: padded tokens of a micro-batch; `once`: a prompt is computed once for its responses."""
    train = plan.settings.train
    iterations = train.iterations
    if iterations is None and data:
        iterations = max(1, math.ceil((train.passes or 1.0) * data / train.prompts))
    groups: tuple[int, ...] = ()
    if work.learns:
        groups = sizes(work.prompts, train.minibatch, train.minibatches)
    micro = None
    if groups and budget:
        rows = max(groups) * work.samples
        tokens = (max(groups) if once else rows) * work.prompt + rows * work.response
        micro = max(1, math.ceil(tokens / budget))
    return Arithmetic(
        prompts=work.prompts,
        samples=work.samples,
        sampled=work.sampled,
        longest=round(work.longest),
        row=round(work.prompt + work.longest),
        epochs=work.epochs,
        groups=groups,
        iterations=iterations,
        data=data,
        micro=micro,
        budget=budget,
    )


def sizes(prompts: int, minibatch: int | None, minibatches: int) -> tuple[int, ...]:
    """Prompts of each optimiser step of an epoch, as an iteration is cut."""
    if minibatch is not None:
        return tuple(min(minibatch, prompts - start) for start in range(0, prompts, minibatch))
    least, more = divmod(prompts, minibatches)
    return (least + 1,) * more + (least,) * (minibatches - more)


def nearest_divisor(of: int, to: int) -> int:
    """The number nearest to another one that divides a third without a rest."""
    return min((n for n in range(1, of + 1) if of % n == 0), key=lambda n: (abs(n - to), n))
