"""Groups of responses from earlier iterations, and the law by which some are drawn.

Legend: E remembered groups, the oldest first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlalign import Example, Rollout
from rlalign.data.packed import pack, unpack
from rlalign_plugin_replay.shelf import Shelf

Law = Literal["uniform", "recent", "reward"]


def log_weights(law: Law, age_E: Tensor, value_E: Tensor, half_life: float, temperature: float) -> Tensor:
    """[E]: the log of how likely each is drawn, up to a summand: alike, half as likely at each half-life, or ∝
    exp(value/T)."""
    if law == "recent":
        return age_E * (-math.log(2) / half_life)
    if law == "reward":
        return value_E / temperature
    return torch.zeros_like(value_E)


def drawn(log_weight_E: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Places of `count` of them, one after the other in proportion to the weights of those that are left.

    With Gumbel noise on the logs the largest are such a draw, however small a weight is.
    """
    uniform_E = torch.rand(len(log_weight_E), dtype=torch.float64, generator=generator)
    noisy_E = log_weight_E - (-uniform_E.log()).log()
    places: list[int] = noisy_E.topk(min(count, len(noisy_E))).indices.tolist()
    return places


@dataclass(frozen=True)
class _About:
    """What is known of a remembered group without unpacking it."""

    prompt: str
    """Which prompt it answers, as `key_of` has it."""
    size: int
    """How many responses it has."""
    tick: int
    """The iteration of the run that it was sampled in."""
    phase: str
    value: float
    """What its responses earned, in the mean."""


def key_of(example: Example) -> str:
    """The same for examples of one id and one prompt; tasks of two phases may share ids."""
    return hashlib.sha256(json.dumps([example.id, example.prompt], default=str).encode()).hexdigest()


class Memory:
    """The last `keep` groups."""

    def __init__(self, keep: int, in_memory: int) -> None:
        self.keep = keep
        self._packed = Shelf(in_memory)
        self._about: deque[_About] = deque()
        self._of_prompt: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._about)

    def __getitem__(self, place: int) -> Rollout:
        return unpack(self._packed[place])

    def use(self, folder: Path) -> None:
        """Where what memory has no room for is put."""
        self._packed.folder = folder

    def add(self, group: Rollout, tick: int, phase: str, value: float) -> None:
        """Remember a group, and forget the oldest if there are too many."""
        self._add(pack(group), _About(key_of(group.examples[0]), len(group), tick, phase, value))

    def answers(self, example: Example) -> list[tuple[int, int]]:
        """All responses to an example: the place of their group, and their row in it."""
        prompt = key_of(example)
        if not self._of_prompt[prompt]:
            return []
        groups = ((i, about.size) for i, about in enumerate(self._about) if about.prompt == prompt)
        return [(i, row) for i, size in groups for row in range(size)]

    def age(self, place: int, tick: int) -> int:
        """How many iterations ago a group was sampled."""
        return tick - self._about[place].tick

    def phase(self, place: int) -> str:
        """The phase that a group was sampled in."""
        return self._about[place].phase

    def log_weights(self, law: Law, tick: int, half_life: float, temperature: float) -> Tensor:
        """[E]: the log of how likely each group is drawn, up to a summand."""
        age_E = torch.tensor([float(tick - about.tick) for about in self._about], dtype=torch.float64)
        value_E = torch.tensor([about.value for about in self._about], dtype=torch.float64)
        return log_weights(law, age_E, value_E, half_life, temperature)

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors."""
        if not self._about:
            return {}
        packed = [torch.frombuffer(bytearray(self._packed[i]), dtype=torch.uint8) for i in range(len(self))]
        return {
            "sizes": torch.tensor([len(x) for x in packed]),
            "packed": torch.cat(packed),
            "ticks": torch.tensor([about.tick for about in self._about]),
            "values": torch.tensor([about.value for about in self._about], dtype=torch.float64),
            "prompts": [about.prompt for about in self._about],
            "responses": torch.tensor([about.size for about in self._about]),
            "phases": [about.phase for about in self._about],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        while self._about:
            self._forget()
        if not state:
            return
        pieces = state["packed"].split(state["sizes"].tolist())
        numbers = (state["responses"].tolist(), state["ticks"].tolist())
        known = zip(state["prompts"], *numbers, state["phases"], state["values"].tolist(), strict=True)
        for piece, about in zip(pieces, known, strict=True):
            self._add(piece.numpy().tobytes(), _About(*about))

    def _add(self, packed: bytes, about: _About) -> None:
        self._packed.append(packed)
        self._about.append(about)
        self._of_prompt[about.prompt] += 1
        if len(self) > self.keep:
            self._forget()

    def _forget(self) -> None:
        self._packed.popleft()
        prompt = self._about.popleft().prompt
        self._of_prompt[prompt] -= 1
        if not self._of_prompt[prompt]:
            del self._of_prompt[prompt]
