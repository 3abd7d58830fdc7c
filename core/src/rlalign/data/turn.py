"""What the other side of an episode says, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
    failed: str = ""
    """Why the episode could not go on; set by the core where its process failed twice, and its group is left out."""

    def __post_init__(self) -> None:
        if not _is_prompt(self.say):
            raise TypeError(
                f"`say` of a Turn is a text or a list of messages ({{role: …, content: …}}), and got {self.say!r}"
            )
        if not isinstance(self.say, str) and any(m.get("role") == "assistant" for m in self.say):
            raise ValueError("a Turn's `say` holds a message of the assistant's, who is the policy")
        if self.choices is not None:
            self._set(choices=self._texts(self.choices))
        wrong = next((name for name, x in self.metrics.items() if _number(x) is None), None)
        if wrong is not None:
            raise TypeError(f"`metrics` of a Turn are numbers, and `{wrong}` is {self.metrics[wrong]!r}")
        if (reward := _number(self.reward)) is None:
            raise TypeError(f"`reward` of a Turn is a number, and got {self.reward!r}")
        # Those of simulators are often NumPy's, which JSON does not know.
        metrics = {name: float(x) for name, x in self.metrics.items()}
        self._set(reward=reward, done=bool(self.done), cut=bool(self.cut), metrics=metrics)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _texts(choices: Sequence[str]) -> tuple[str, ...]:
        if isinstance(choices, str):
            raise TypeError(f"`choices` of a Turn is a list, and got one text: `choices=[{choices!r}]`")
        wrong = [choice for choice in choices if not isinstance(choice, str)]
        if wrong:
            raise TypeError(f"`choices` of a Turn are texts, and one is {wrong[0]!r}")
        if not any(choices):
            raise ValueError(
                "a Turn with an empty list of `choices`, or of empty ones, leaves nothing to say; None allows anything"
            )
        return tuple(choices)

    @property
    def over(self) -> bool:
        """Whether the episode ends with it."""
        return self.done or self.cut


def _is_prompt(say: object) -> bool:
    return isinstance(say, str) or (
        isinstance(say, Sequence) and all(isinstance(message, Mapping) for message in say)
    )


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return None


class Episode(Protocol):
    """A game in progress. A method `close()`, where it has one, is called exactly once, however the game ends.

    A method `fork()` gives a copy that goes on alone; who searches needs none, and plays from the start without it.
    """

    def step(self, text: str) -> Turn:
        """What comes back for a response, which is given without the token that ended it."""


Transcript = Sequence[tuple[str, Turn]]
"""Each response of a row and what came back for it: `columns["transcript"]`."""
