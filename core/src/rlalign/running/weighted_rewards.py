"""The reward of responses: every component's score times its weight; a wrapper changes the scores above it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import Reward, Score
from rlalign.data.rollout import Rollout
from rlalign.interface.run import Run
from rlalign.progress import report
from rlalign.running import dealing
from rlalign.running.calls import Calls
from rlalign.running.members import Member, implements
from rlalign.running.returned import checked_score, checked_scores
from rlalign.running.scored_before import given, merged, unscored
from rlalign.running.wrapping import around


@dataclass
class Asked:
    """How far rewards have been asked for the scores of some responses."""

    last: Member | None = None
    """Who was asked last, and may not have answered."""
    so_far: dict[str, Tensor] = field(default_factory=dict)
    """What each said at first, unwrapped."""

    @property
    def name(self) -> str:
        return self.last.name if self.last else "?"

    @property
    def wrapper(self) -> bool:
        """Whether it was a wrapper, which is at fault for all prompts or for none."""
        return self.last is not None and implements(self.last.component, "reward") == "wrapper"


class WeightedSum:
    """The scores of these members, in pipeline order, and their weighted sum."""

    def __init__(self, listed: Sequence[Member], calls: Calls, asked: Asked) -> None:
        self.calls = calls
        self.asked = asked
        self.weights = {m.name: m.item.weight for m in listed if implements(m.component, "reward")}
        self.seconds: dict[str, float] = {}
        """What each took since somebody looked."""
        self._known: list[Score] = []
        self._given: dict[str, Tensor] = {}
        self._scores = self._nested(listed)

    def __call__(self, run: Run, rollout: Rollout, known: Sequence[Score] = ()) -> Reward:
        """The reward. `known` scores stand above all items, for wrappers to read; they are no part of it."""
        self._known, self._given = list(known), {}
        others = {score.name for score in known}
        dtype = rollout.logprobs_NT.dtype
        tokens_NT = torch.zeros(rollout.mask_NT.shape, dtype=dtype, device=rollout.mask_NT.device)
        parts: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for score in self._scores(run=run, rollout=rollout):
            if score.name in others:
                continue
            name = str(score.name)
            value = score.value.to(tokens_NT)
            tokens_NT = tokens_NT + self.weights[name] * pay(value, rollout)
            parts[name] = value
            metrics |= {f"{name}/{metric}": x for metric, x in score.metrics.items()}
        return Reward(tokens_NT, parts, metrics, self._given)

    def _nested(self, listed: Sequence[Member]) -> Callable[..., list[Score]]:
        """Every reward's score, named, unweighted, in pipeline order; a wrapper wraps all items above it."""
        items: list[Member] = []
        inner: Callable[..., list[Score]] | None = None
        for member in listed:
            kind = implements(member.component, "reward")
            if kind == "plain":
                items.append(member)
            elif kind == "wrapper":
                inner, items = self._wrapped_scores(member, self._level(inner, items)), []
        return self._level(inner, items)

    def _level(
        self, inner: Callable[..., list[Score]] | None, items: Sequence[Member]
    ) -> Callable[..., list[Score]]:
        def scores(run: Run, rollout: Rollout) -> list[Score]:
            found = inner(run=run, rollout=rollout) if inner else [*self._known]
            for i, member in enumerate(items, 1):
                report(member.name, i, len(items))
                self.asked.last = member
                started = time.perf_counter()
                score = self._score(member, run, rollout)
                took = time.perf_counter() - started
                self.seconds[member.name] = self.seconds.get(member.name, 0.0) + took
                self.asked.so_far.setdefault(member.name, score.value)
                found = [*found, score]
            return found

        return scores

    def _score(self, member: Member, run: Run, rollout: Rollout) -> Score:
        """What one component says, asked only for groups that bring no score of it along."""

        def ask(rollout: Rollout) -> Score:
            return dealing.scored(member, rollout, some)

        def some(rollout: Rollout) -> Score:
            score = self.calls(member, "reward", run=run, rollout=rollout)
            return replace(checked_score(score, member, rollout), name=member.name)

        rows = unscored(rollout, member)
        if rows is None:
            score = ask(rollout)
        else:
            score = merged(rollout, member, rows, ask(rollout.take(rows)) if len(rows) else None)
        self._given |= given(score, member)
        return score

    def _wrapped_scores(
        self, member: Member, above: Callable[..., list[Score]]
    ) -> Callable[..., list[Score]]:
        names: list[str | None] = []

        def noted(run: Run, rollout: Rollout) -> list[Score]:
            with _asking(run, None):
                scores = above(run=run, rollout=rollout)
            self.asked.last = member
            names[:] = [score.name for score in scores]
            return scores

        call = around(member, "reward", noted, self.calls)

        def scores(run: Run, rollout: Rollout) -> list[Score]:
            def ask(others: Rollout) -> list[Score]:
                held = self._known, self._given  # those are said of the responses in hand
                self._known, self._given = [], {}
                try:
                    with _asking(run, None):
                        found = above(run=run, rollout=others)
                finally:
                    self._known, self._given = held
                self.asked.last = member
                return found

            self.asked.last = member
            with _asking(run, ask):
                return checked_scores(call(run=run, rollout=rollout), names, member, rollout)

        return scores


@contextmanager
def _asking(run: Any, ask: Callable[[Rollout], list[Score]] | None) -> Iterator[None]:
    """What `run.scores_above` asks meanwhile; None: nobody may."""
    run.above.append(ask)
    try:
        yield
    finally:
        run.above.pop()


def pay(value: Tensor, rollout: Rollout) -> Tensor:
    """A score as [N,T]. A score per response, [N], is paid on the response's last chosen step."""
    if value.ndim == 2:
        return torch.where(rollout.mask_NT, value, value.new_zeros(()))
    paid_NT = value.new_zeros(rollout.mask_NT.shape)
    rows_N = torch.arange(len(rollout), device=value.device)
    paid_NT[rows_N, rollout.length_N - 1] = value
    return paid_NT
