"""Episodes in a process of their own: that process's side. It begins them, says what they answer, and forgets them.

A question asks for turns: `{"end": episodes to forget, "play": […]}`, each of an episode by its number, with `"begin"`,
what it follows from, or `"text"`, what is said to it. The answer is `{"turns": […]}`: for each `{"turn": …}`, or
`{"error": …}`, and the episode is forgotten. Where turns take time there are fewer: the others are asked for again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from rlalign.config.pipeline import Item
from rlalign.data.limits import EPISODE_BYTES, in_words
from rlalign.data.turn import Episode, Turn
from rlalign.errors import describe_error
from rlalign.interface.environment import Environment
from rlalign.interface.kept import settings_kept
from rlalign.randomness import Seeds
from rlalign.serving.host import Alone, tell
from rlalign.serving.questions import example_of

SHARE = 0.05
"""Seconds after which turns are not kept back for others."""


class Stage:
    """The environment and its episodes, by the numbers that the run gives them."""

    def __init__(self, item: Item, seed: int) -> None:
        made = item.build()
        assert isinstance(made, Environment)
        self._environment = made
        self._episodes: dict[int, Episode] = {}
        seeds = Seeds(seed)
        seeds.seed_all("setup", item.name)
        with settings_kept(tell):
            made.setup(Alone({}))

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The turns that follow, or what went wrong with some."""
        for number in asked["end"]:
            self._end(number)
        turns, until = [], time.monotonic() + SHARE
        for one in asked["play"]:
            turns.append(self._play(one))
            if time.monotonic() > until:
                break
        return {"turns": turns}

    def _play(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        number = asked["episode"]
        try:
            if "text" in asked:
                return turn_written(self._episodes[number].step(asked["text"]))
            self._end(number)
            begin = asked["begin"]
            start, noise = (torch.Generator().manual_seed(begin[name]) for name in ("start", "noise"))
            example = example_of(begin["example"])
            ((self._episodes[number], first),) = self._environment.start_all([example], [start], [noise])
            return turn_written(first)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            self._end(number)
            return {"error": f"raised {describe_error(error)}"}

    def _end(self, number: int) -> None:
        episode = self._episodes.pop(number, None)
        if (close := getattr(episode, "close", None)) is not None:
            try:
                close()
            except BaseException as error:
                tell("close", f"`close` of an episode raised {describe_error(error)}")


def turn_written(turn: Any) -> dict[str, Any]:
    """A turn as JSON. TypeError or ValueError where it is none, or holds what JSON does not."""
    if not isinstance(turn, Turn):
        raise TypeError(f"a Turn is wanted, and this is a {type(turn).__name__}")
    numbers = {"reward": turn.reward, **turn.metrics}
    if wrong := [name for name, value in numbers.items() if not math.isfinite(value)]:
        raise ValueError(f"`{wrong[0]}` of a Turn is {numbers[wrong[0]]}")
    found = {f.name: getattr(turn, f.name) for f in fields(turn)}
    if (size := len(json.dumps(found, allow_nan=False))) > EPISODE_BYTES:
        raise ValueError(f"a Turn of {in_words(size)}, more than the {in_words(EPISODE_BYTES)} that travel")
    return {"turn": found}


def turn_of(said: Mapping[str, Any]) -> Turn:
    """And back. TypeError or ValueError where it is none."""
    choices = said["choices"]
    return Turn(**{**said, "choices": None if choices is None else tuple(choices)})
