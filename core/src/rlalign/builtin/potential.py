"""`potential`: scores of whole responses, paid bit by bit while a response grows."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlalign.builtin.rewards import Scores
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.errors import attributed_to
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run

_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s|$)|[。！？]+["'”’」』)）]*|\n+""")


class Potential(Component):
    """Scores of whole responses paid bit by bit: at each sentence's end, what the sentence adds to the score.

    Potential-based shaping: the score of what stands so far, less the score of what stood at the last payment. An
    empty response counts 0, so all payments add up to the whole response's score. Scores paid at every step stay
    as they are. The rewards above are asked once more for every sentence.
    """

    paper = (
        "Ng, Harada and Russell 1999, Policy Invariance Under Reward Transformations, theorem 1 with γ = 1"
    )

    class Config(Options):
        """Options of `potential`."""

        every: Literal["sentence", "token"] | Annotated[int, Field(gt=0)] = Field(
            "sentence",
            description="when a score is paid: at the end of every sentence, at every token, or after every so many",
        )

    config: Config

    @hookimpl(wrapper=True)
    def reward(self, run: Run, rollout: Rollout) -> Scores:
        scores = yield
        whole = {s.name: s.value for s in scores if s.value.ndim == 1}
        if not whole:
            return scores
        paid = {name: x_N.new_zeros(rollout.mask_NT.shape) for name, x_N in whole.items()}
        had = {name: torch.zeros_like(x_N) for name, x_N in whole.items()}
        rows_N = zip(rollout.actions_NT.cpu(), rollout.mask_NT.cpu(), strict=True)
        ends = [self._ends(run, actions_T, mask_T.nonzero()[:, 0].tolist()) for actions_T, mask_T in rows_N]
        for k in range(max((len(steps) for steps in ends), default=0)):
            at_N = torch.tensor([s[k] if k < len(s) else -1 for s in ends], device=rollout.group_N.device)
            rows = torch.isin(rollout.group_N, rollout.group_N[at_N >= 0]).nonzero()[:, 0]  # whole groups
            begun = _begun(run, rollout.take(rows), at_N[rows])
            for score in run.scores_above(begun):
                if score.name in whole and score.value.ndim == 1:
                    now_N = had[score.name].index_copy(0, rows, score.value.to(had[score.name]))
                    _pay(paid[score.name], now_N - had[score.name], at_N)
                    had[score.name] = torch.where(at_N >= 0, now_N, had[score.name])
        for name, x_N in whole.items():
            _pay(paid[name], x_N - had[name], rollout.length_N - 1)
        return [replace(s, value=paid[s.name]) if s.name in paid else s for s in scores]

    def _ends(self, run: Run, actions_T: Tensor, chosen: list[int]) -> list[int]:
        """The steps of a response that end a bit of it, the last one left out: chosen ones, for none else is paid."""
        every = self.config.every
        if every != "sentence":
            every = 1 if every == "token" else every
            return chosen[every - 1 : -1 : every]
        steps = sentence_ends(run.models.policy.text, actions_T[: chosen[-1] + 1])
        places = {bisect_left(chosen, step) for step in steps}
        return [chosen[place] for place in sorted(places) if place < len(chosen) - 1]


def sentence_ends(text_of: Callable[[Tensor], str], actions_T: Tensor) -> list[int]:
    """The step with which each sentence of a response is written, as it follows from the text.

    A sentence ends with one of . ! ? … and what closes after it, where a space follows; with 。！？; or with the line.
    """

    @cache
    def written(count: int) -> int:
        return len(text_of(actions_T[:count]).rstrip("�"))  # a character may be several tokens

    count = len(actions_T)
    ends = [found.end() for found in _END.finditer(text_of(actions_T))]
    return [bisect_left(range(count), end, key=lambda step: written(step + 1)) for end in ends]


def _begun(run: Run, rollout: Rollout, at_N: Tensor) -> Rollout:
    """The responses as they stand after these steps; −1: the whole of it."""
    steps_T = torch.arange(rollout.steps, device=at_N.device)
    cut_N = at_N >= 0
    mask_NT = rollout.mask_NT & ((steps_T <= at_N[:, None]) | ~cut_N[:, None])
    texts, actions_NT, ends = list(rollout.texts), rollout.actions_NT.cpu(), at_N.tolist()
    with attributed_to(f"`postprocess` of task `{run.task.name}`"):
        for row in cut_N.nonzero()[:, 0].tolist():
            written = run.models.policy.text(actions_NT[row, : ends[row] + 1])
            texts[row] = run.task.postprocess(written)
    return replace(rollout, texts=tuple(texts), mask_NT=mask_NT, finished_N=rollout.finished_N & ~cut_N)


def _pay(paid_NT: Tensor, value_N: Tensor, at_N: Tensor) -> None:
    """Add a value at a step of each response, in place; −1: none."""
    rows = (at_N >= 0).nonzero()[:, 0]
    paid_NT[rows, at_N[rows]] += value_N[rows]
