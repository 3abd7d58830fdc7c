"""What a sampler elsewhere is asked, and the answer to one question that it works on while the policy learns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlalign.data.example import Example
from rlalign.data.packed import bare, pack, unpack
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.records.background import Background
from rlalign.world.ranks import here

SHORT = 8
"""Examples of a short question, and tokens of its answers."""


@dataclass(frozen=True)
class Question:
    """Responses to some examples, each from the seed of its place in the draw."""

    examples: tuple[Example, ...]
    how: Sampling
    key: tuple[str | int, ...]
    first: int
    """The place of the first example; the others follow."""

    def short(self) -> Question:
        """A little of it, which is answered at once."""
        steps = min(SHORT, self.how.max_new_tokens)
        least = min(steps, self.how.min_new_tokens)
        less = {"samples": 1, "max_new_tokens": steps, "min_new_tokens": least}
        return replace(self, examples=self.examples[:SHORT], how=self.how.model_copy(update=less))

    @property
    def name(self) -> str:
        """A hash, equal for questions that are the same."""
        said = [[e.id for e in self.examples], self.how.model_dump(mode="json"), self.key, self.first]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class Ahead:
    """One question at most that is worked on in a thread, and its answer until the same is asked.

    Where several processes share a run, only rank 0's has any.
    """

    def __init__(self) -> None:
        self._thread = Background[Rollout]("asks-ahead")
        self._asked = ""
        """The name of the question."""
        self._answer: Rollout | None = None
        self._give_up: Callable[[], None] = lambda: None

    def begin(self, question: Question, ask: Callable[[], Rollout], give_up: Callable[[], None]) -> None:
        """Ask it; nothing may be in flight. `give_up` says that nobody wants the answer any more."""
        self._thread.start(ask)
        self._give_up = give_up
        self._asked, self._answer = question.name, None

    def land(self) -> None:
        """Wait for what is in flight: afterwards the sampler is free. What went wrong with it is raised here."""
        if (found := self._thread.result()) is not None:
            self._answer = found

    def has(self, question: Question) -> bool:
        """Whether this is what it has been asked, and has answered. The sampler is free."""
        self.land()
        return self._answer is not None and self._asked == question.name

    def answer(self, question: Question) -> Rollout | None:
        """The answer to this, once; None where it has none. The sampler is free."""
        if not self.has(question):
            return None
        found, self._answer = self._answer, None
        return found and replace(found, examples=question.examples)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the answer, since the weights that gave it are gone with the next step."""
        here().lead(self.land, "what a sampler is asked ahead")
        if self._answer is None:
            return {}
        data = torch.frombuffer(bytearray(pack(bare(self._answer))), dtype=torch.uint8)
        return {"ahead": {"asked": self._asked, "answer": data}}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up what `state` gave."""
        if "ahead" in state and here().leads:
            self._asked = state["ahead"]["asked"]
            self._answer = unpack(state["ahead"]["answer"].numpy().tobytes()).to(device)

    def leave(self) -> None:
        """Wait until the sampler is free, and end the thread: nobody asks for its answer any more, whatever it is."""
        with suppress(Exception):
            self.land()
        self._thread.close()

    def close(self) -> None:
        """End the thread, as the run ends: the sampler may give up what it is at."""
        if self._thread.busy:
            self._give_up()
        self._thread.close()
