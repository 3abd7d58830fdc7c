"""Turns of an environment that does not play the same game again: written down as they come, and taken from there.

An iteration that is done again after a crash meets the same turns for as long as the policy says the same. The record
is the environment then; the real episode is begun where the record ends, and told what was said up to there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from torch import Generator

from rlalign.data.example import Example
from rlalign.data.turn import Episode, Turn
from rlalign.errors import ComponentError
from rlalign.interface.environment import Environment
from rlalign.records.answers import Answers
from rlalign.serving.stage import turn_of, turn_written
from rlalign.world.ranks import here


class Recorded(Environment):
    """An environment with its record. `tick`: iterations of the whole run that are done."""

    def __init__(self, real: Environment, answers: Answers, tick: int) -> None:
        super().__init__(real.config)
        if here().size > 1:
            raise ComponentError(
                f"environment `{real.name}` does not play the same game again (`replays`), and what it says is written "
                "down by one process; run without `--processes`"
            )
        self.name, self.turns, self.tokens, self.rewrites = real.name, real.turns, real.tokens, real.rewrites
        self._real, self._answers, self._tick = real, answers, tick

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        about = [self.name, example.id, start.initial_seed(), noise.initial_seed()]
        episode = _Episode(self._real, example, start, noise, json.dumps(about))
        if (known := self._known(episode.key)) is not None:
            return episode, known
        first = episode.live()
        self._answers.add(self._tick, {episode.key: turn_written(first)})
        return episode, first

    def step_all(self, episodes: Sequence[Episode], texts: Sequence[str]) -> Sequence[Turn]:
        played: list[_Episode] = list(episodes)  # type: ignore[arg-type]
        turns: dict[int, Turn] = {}
        for i, (episode, text) in enumerate(zip(played, texts, strict=True)):
            episode.said.append(text)
            if (known := self._known(episode.key)) is not None:
                turns[i] = known
        new = [i for i in range(len(played)) if i not in turns]
        live = [played[i].lived() for i in new]
        found = self._real.step_all(live, [texts[i] for i in new]) if new else ()
        self._answers.add(
            self._tick, {played[i].key: turn_written(turn) for i, turn in zip(new, found, strict=True)}
        )
        turns |= dict(zip(new, found, strict=True))
        return [turns[i] for i in range(len(played))]

    def _known(self, key: str) -> Turn | None:
        said = self._answers.known(self._tick).get(key)
        return None if said is None else turn_of(said["turn"])


class _Episode:
    """An episode that is played from the record, and begun in earnest where that ends."""

    def __init__(self, real: Environment, example: Example, *about: Any) -> None:
        self._real, self._example = real, example
        self._start, self._noise, self._about = about
        self.said: list[str] = []
        self._episode: Episode | None = None

    @property
    def key(self) -> str:
        """A hash of the episode and of all that was said in it."""
        return hashlib.sha256(json.dumps(["turn", self._about, self.said]).encode()).hexdigest()

    def live(self) -> Turn:
        begun = self._real.start_all([self._example], [self._start], [self._noise])
        ((self._episode, first),) = begun
        return first

    def lived(self) -> Episode:
        """The real one, at the place where the record ends."""
        if self._episode is None:
            self.live()
            for text in self.said[:-1]:
                assert self._episode is not None
                self._episode.step(text)
        assert self._episode is not None
        return self._episode

    def step(self, text: str) -> Turn:
        raise NotImplementedError("`step_all` steps it")

    def close(self) -> None:
        if (close := getattr(self._episode, "close", None)) is not None:
            close()
