"""What the other side of an episode says, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlalign.data.example import Prompt


@dataclass(frozen=True)
class Turn:
    """What an environment says: at first, and then in answer to each response of the policy."""

    say: Prompt = ""
    """What the policy reads next: text, or chat messages, none of them the assistant's. Empty: nothing."""
    reward: float = 0.0
    """For the response that it answers; paid on that response's last chosen token."""
    done: bool = False
    """Over by the rules: nothing comes after."""
    cut: bool = False
    """Over for a reason outside them, such as a time limit: a critic may say what would have come."""
    choices: tuple[str, ...] | None = None
    """The only things that may be said next; None: anything."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers of this turn. Summed over an episode, their means are logged as `played/NAME`."""

    def __post_init__(self) -> None:
        if self.choices is not None:
            if isinstance(self.choices, str):
                raise TypeError(
                    f"`choices` of a Turn is a list, and got one text: `choices=[{self.choices!r}]`"
                )
            object.__setattr__(self, "choices", tuple(self.choices))
            if not self.choices:
                raise ValueError(
                    "a Turn with an empty list of `choices` leaves nothing to say; None allows anything"
                )
        if not isinstance(self.say, str) and any(m.get("role") == "assistant" for m in self.say):
            raise ValueError("a Turn's `say` holds a message of the assistant's, who is the policy")

    @property
    def over(self) -> bool:
        """Whether the episode ends with it."""
        return self.done or self.cut


class Episode(Protocol):
    """A game in progress. A method `close()`, where it has one, is called exactly once, however the game ends."""

    def step(self, text: str) -> Turn:
        """What comes back for a response, which is given without the token that ended it."""


Transcript = Sequence[tuple[str, Turn]]
"""Each response of a row and what came back for it: `columns["transcript"]`."""
