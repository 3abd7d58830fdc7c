"""Episodes in a process of their own: that process's side. It begins them, says what they answer, and forgets them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from rlalign.config.pipeline import Item
from rlalign.data.turn import Episode, Turn
from rlalign.errors import describe_error
from rlalign.interface.environment import Environment
from rlalign.interface.kept import settings_kept
from rlalign.randomness import Seeds
from rlalign.serving.host import Alone, tell
from rlalign.serving.protocol import Broken, Channel
from rlalign.serving.questions import example_of


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

    def answer_all(self, channel: Channel) -> None:
        """Play; Broken once the run is gone. An answer a turn, in the order in which they were asked for."""
        while True:
            asked = channel.receive()
            for number in asked["end"]:
                self._end(number)
            for one in asked["play"]:
                self._play(channel, one)

    def _play(self, channel: Channel, asked: Mapping[str, Any]) -> None:
        """Begin an episode, where that is asked for, and say these texts; nothing after the first that fails."""
        number = asked["episode"]
        try:
            if (begin := asked["begin"]) is not None:
                self._end(number)
                start, noise = (torch.Generator().manual_seed(begin[name]) for name in ("start", "noise"))
                example = example_of(begin["example"])
                ((self._episodes[number], first),) = self._environment.start_all([example], [start], [noise])
                channel.send(turn_written(first))
            for text in asked["texts"]:
                channel.send(turn_written(self._episodes[number].step(text)))
        except Broken:
            raise
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            self._end(number)
            channel.send({"error": f"raised {describe_error(error)}"})

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
    json.dumps(found, allow_nan=False)
    return {"turn": found}


def turn_of(said: Mapping[str, Any]) -> Turn:
    """And back. TypeError or ValueError where it is none."""
    choices = said["choices"]
    return Turn(**{**said, "choices": None if choices is None else tuple(choices)})
