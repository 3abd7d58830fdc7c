"""What the policy of an episode has seen, turn by turn, and where what it earns for that is paid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlalign import ComponentError, Rollout
from rlalign.data.example import Prompt
from rlalign.data.rollout import EPISODE
from rlalign_plugin_function_reward.source import named


def observations(rollout: Rollout, who: str) -> list[list[str]]:
    """Of each episode: what was said first, and after each response. Where nothing is said, the last still stands."""
    if "transcript" not in rollout.columns:
        raise ComponentError(
            f"`{who}` looks at what an environment says, turn by turn, and these responses were not sampled in one; it "
            "goes with a task that is an environment"
        )
    firsts = [text_of(rollout.examples[g].prompt) for g in rollout.group_N.tolist()]
    return [
        list(accumulate((text_of(turn.say) for _, turn in row), lambda last, say: say or last, initial=first))
        for first, row in zip(firsts, rollout.columns["transcript"], strict=True)
    ]


def begun(rollout: Rollout, seen: Sequence[Sequence[str]]) -> list[str]:
    """Of each row: how its episode began. Where history is rewritten a row is one turn of it, and they are in order."""
    if EPISODE not in rollout.columns:
        return [row[0] for row in seen]
    episodes, firsts = rollout.columns[EPISODE].tolist(), dict[int, str]()
    for episode, row in zip(episodes, seen, strict=True):
        firsts.setdefault(episode, row[0])
    return [firsts[episode] for episode in episodes]


def text_of(said: Prompt) -> str:
    """Text as it is; of messages what they say."""
    return said if isinstance(said, str) else "\n".join(str(message["content"]) for message in said)


def ends(rollout: Rollout) -> list[list[int]]:
    """Of each episode: the last chosen step of each turn."""
    found = []
    for mask_T, turn_T in zip(rollout.mask_NT.cpu(), rollout.columns["turn"].cpu(), strict=True):
        steps = mask_T.nonzero()[:, 0].tolist()
        found.append(list(dict(zip(turn_T[steps].tolist(), steps, strict=True)).values()))
    return found


def paid(rollout: Rollout, values: Sequence[Sequence[float]]) -> Tensor:
    """[N,T]: a value for each turn of each episode, at the end of what the policy said."""
    paid_NT = torch.zeros(rollout.mask_NT.shape, dtype=torch.float32)
    for row, (steps, mine) in enumerate(zip(ends(rollout), values, strict=True)):
        # A row that is full may end before anything is said in its last turn.
        paid_NT[row, steps] = torch.tensor(list(mine)[: len(steps)], dtype=torch.float32)
    return paid_NT.to(rollout.mask_NT.device)


class Described:
    """A function from a list of what environments say to a list of texts, asked once for each; none: as it was said."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._function: Callable[[list[str]], Any] | None = None

    def load(self) -> None:
        """Import it."""
        self._function = named(self.path) if self.path else list

    def __call__(self, episodes: Sequence[Sequence[str]]) -> list[list[str]]:
        distinct = list(dict.fromkeys(said for episode in episodes for said in episode))
        if self._function is None:
            self.load()
        assert self._function is not None
        found = self._function(distinct)
        if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != len(distinct):
            got = f"{len(found)}" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
            raise ComponentError(f"`{self._called}` must return a list of {len(distinct)} texts, got {got}")
        if wrong := [text for text in found if not isinstance(text, str)]:
            raise ComponentError(f"`{self._called}` must return texts, and one is {wrong[0]!r}")
        known: Mapping[str, str] = dict(zip(distinct, found, strict=True))
        return [[known[said] for said in episode] for episode in episodes]

    @property
    def _called(self) -> str:
        return self.path.name if self.path else "?"
