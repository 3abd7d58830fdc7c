"""A logged response of several turns: what the policy said, and what was said to it in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

ENVIRONMENT = "environment"
"""The role of what is said as plain text, and not as a chat's message."""


class Part(NamedTuple):
    """One of the policy's turns."""

    text: str
    ended: bool
    """Whether it ended with an end token."""
    told: Any
    """What was said to it then: text, or messages; of the last one nothing."""


class Spoken(str):
    """As text it is what the policy said, its turns joined by newlines; `messages` hold all that was said.

    The assistant's messages are the policy's; one with `"cut": true` has no end token behind it. What comes between
    has the role `environment` where it was plain text, or is a chat's message.
    """

    messages: tuple[Mapping[str, Any], ...]

    def __new__(cls, messages: Sequence[Mapping[str, Any]]) -> Spoken:
        found = tuple(dict(message) for message in messages)
        roles = [message.get("role") for message in found]
        if not roles or roles[0] != "assistant" or roles[-1] != "assistant":
            raise ValueError(
                "a response of several turns is a list of messages whose first and last are the assistant's"
            )
        own = [str(message["content"]) for message in found if message["role"] == "assistant"]
        made = super().__new__(cls, "\n".join(own))
        made.messages = found
        return made

    def __getnewargs__(self) -> tuple[Any]:
        return (self.messages,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spoken) and self.messages == other.messages

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    @property
    def parts(self) -> list[Part]:
        """The policy's turns in their order."""
        found: list[Part] = []
        told: list[Mapping[str, Any]] = []
        for message in reversed(self.messages):
            if message["role"] != "assistant":
                told.insert(0, message)
                continue
            plain = all(each["role"] == ENVIRONMENT for each in told)
            say = "".join(str(each["content"]) for each in told) if plain else told
            found.insert(0, Part(str(message["content"]), not message.get("cut", False), say))
            told = []
        return found


def as_logged(response: str) -> Any:
    """A response as JSON holds it: text, or its messages."""
    return list(response.messages) if isinstance(response, Spoken) else response


def as_response(logged: Any) -> str:
    """And back."""
    return logged if isinstance(logged, str) else Spoken(logged)


def row_of(
    response: Spoken, own: Callable[[str, bool], Sequence[int]], given: Callable[[Any, bool], Tensor]
) -> tuple[list[int], list[bool]]:
    """The tokens of a row, and which of them the policy chose; `own` reads one of its turns, and whether it ended."""
    tokens: list[int] = []
    chosen: list[bool] = []
    parts = response.parts
    for place, part in enumerate(parts):
        mine = list(own(part.text, part.ended))
        told = given(part.told, part.ended).tolist() if place + 1 < len(parts) else []
        tokens += [*mine, *told]
        chosen += [True] * len(mine) + [False] * len(told)
    return tokens, chosen


def messages_of(transcript: Sequence[tuple[str, Any]], ended: Sequence[bool]) -> list[dict[str, Any]]:
    """An episode's transcript as such messages, with the rewards of turns beside what earned them.

    What came back for the last of them, and was never told, is its `answer`.
    """
    found: list[dict[str, Any]] = []
    for place, ((text, turn), end) in enumerate(zip(transcript, ended, strict=True)):
        about = ({} if end else {"cut": True}) | ({"reward": turn.reward} if turn.reward else {})
        say = turn.say if isinstance(turn.say, str) else json.loads(json.dumps(list(turn.say), default=str))
        last = place + 1 == len(transcript)
        found.append(
            {"role": "assistant", "content": text, **about, **({"answer": say} if last and say else {})}
        )
        if last or not say:
            continue
        found += [{"role": ENVIRONMENT, "content": say}] if isinstance(say, str) else say
    return found
