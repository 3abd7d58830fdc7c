"""`potential`: scores of whole responses, paid bit by bit while a response grows."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlalign.builtin.rewards import Scores
from rlalign.data.rollout import SCORE_OF, TRANSCRIPT, TURN, Rollout
from rlalign.data.settings import Options
from rlalign.errors import attributed_to
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run

_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s|$)|[。！？]+["'”’」』)）]*|\n+""")

Turns = tuple[Tensor, ...]
"""The steps that the policy chose in a response, turn by turn."""


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
        rows_N = zip(rollout.actions_NT.cpu(), _turns(rollout), strict=True)
        ends = [self._ends(run, actions_T, turns) for actions_T, turns in rows_N]
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

    def _ends(self, run: Run, actions_T: Tensor, turns: Turns) -> list[int]:
        """The steps of a response that end a bit of it, the last one left out."""
        chosen, every = torch.cat(turns).tolist(), self.config.every
        if every != "sentence":
            every = 1 if every == "token" else every
            return chosen[every - 1 : -1 : every]
        ends = {int(steps_C[-1]) for steps_C in turns}
        for steps_C in turns:
            ends |= {
                int(steps_C[place]) for place in sentence_ends(run.models.policy.text, actions_T[steps_C])
            }
        return sorted(ends - {chosen[-1]})


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
    """The responses as they stand after these steps, and nothing that was scored before; −1: the whole of it."""
    steps_T = torch.arange(rollout.steps, device=at_N.device)
    cut_N = at_N >= 0
    begun = replace(
        rollout,
        mask_NT=rollout.mask_NT & ((steps_T <= at_N[:, None]) | ~cut_N[:, None]),
        finished_N=rollout.finished_N & ~cut_N,
        columns={name: x for name, x in rollout.columns.items() if not name.startswith(SCORE_OF)},
    )
    texts, ends = list(rollout.texts), at_N.tolist()
    with attributed_to(f"`postprocess` of task `{run.task.name}`"):
        for row, turns in enumerate(_turns(begun)):
            if ends[row] >= 0:
                texts[row] = run.task.postprocess(_written(run, begun, row, turns))
    return replace(begun, texts=tuple(texts))


def _turns(rollout: Rollout) -> Iterator[Turns]:
    """Those of each response: what the policy was told stands in no text of it."""
    mask_NT = rollout.mask_NT.cpu()
    # Of logged episodes nothing but what was told in between says where a turn ends.
    turn_NT = rollout.columns[TURN].cpu() if TURN in rollout.columns else (~mask_NT).cumsum(1)
    for mask_T, turn_T in zip(mask_NT, turn_NT, strict=True):
        steps_C = mask_T.nonzero()[:, 0]
        yield steps_C.split(turn_T[steps_C].unique_consecutive(return_counts=True)[1].tolist())


def _written(run: Run, rollout: Rollout, row: int, turns: Turns) -> str:
    """What the policy says in these turns of a response; those of an episode end where a stop string begins."""
    said = [run.models.policy.text(rollout.actions_NT[row, steps_C]) for steps_C in turns]
    if TRANSCRIPT in rollout.columns:
        whole = [text for text, _ in rollout.columns[TRANSCRIPT][row]]
        said = [part[: len(text)] for part, text in zip(said, whole, strict=False)]
    return "\n".join(said)


def _pay(paid_NT: Tensor, value_N: Tensor, at_N: Tensor) -> None:
    """Add a value at a step of each response, in place; −1: none."""
    rows = (at_N >= 0).nonzero()[:, 0]
    paid_NT[rows, at_N[rows]] += value_N[rows]
