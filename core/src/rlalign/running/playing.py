"""Episodes of a task that is an environment: begun from keys, stepped, ended, and each fault with its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from rlalign.data.example import Example
from rlalign.data.turn import Episode, Turn
from rlalign.decoding.play import started
from rlalign.errors import ComponentError, attributed_to
from rlalign.interface.environment import Environment
from rlalign.randomness import global_seeds_kept
from rlalign.serving.isolated import Isolated

SHOWN = 200
"""Characters of a response that a message shows."""


class Playing:
    """The game that the sampling loop plays. `rng` makes generators of keys: the place of an example is the draw's."""

    def __init__(
        self,
        environment: Environment,
        examples: Sequence[Example],
        samples: int,
        rng: Callable[..., torch.Generator],
        first: int = 0,
    ) -> None:
        self.environment, self.examples, self.samples = environment, examples, samples
        self.turns, self.tokens = environment.turns, environment.tokens
        self._rng, self._first = rng, first
        self._who = f"environment `{environment.name}`"
        self._episodes: dict[int, Episode] = {}
        """Those that go on, by row."""
        self._begun: Sequence[Example] = ()
        self._steps: dict[int, int] = {}

    @global_seeds_kept()
    def start(self, part: slice) -> tuple[Sequence[Example], Sequence[Turn]]:
        self._episodes, self._steps = {}, {}
        places = range(*part.indices(len(self.examples)))
        turns = self._start([(place, sample) for place in places for sample in range(self.samples)])
        begun: list[Example] = []
        firsts: list[Turn] = []
        for group, place in enumerate(places):
            example, first = self.examples[place], turns[group * self.samples]
            for turn in turns[group * self.samples : (group + 1) * self.samples]:
                if (turn.say, turn.choices) != (first.say, first.choices):
                    raise ComponentError(
                        f"{self._who}: two episodes of example `{example.id}` begin otherwise ({_shown(first.say)} and "
                        f"{_shown(turn.say)}); what the first turn says must follow from the example and from `start`, "
                        "which all samples of a prompt share, and not from `noise`"
                    )
                if turn.over or turn.reward or turn.metrics:
                    raise ComponentError(
                        f"{self._who}: the first turn of example `{example.id}` has a reward or metrics, or ends the "
                        "episode, and nothing has been said yet"
                    )
            begun.append(replace(example, prompt=first.say) if first.say else example)
            firsts.append(first)
        self._begun = begun
        return begun, firsts

    def _start(self, asked: Sequence[tuple[int, int]]) -> list[Turn]:
        """Begin the episodes of these (place, sample), in the order of rows; the first turn of each."""
        each = [
            (
                self.examples[place],
                self._rng("start", self._first + place),
                self._rng("noise", self._first + place, sample),
            )
            for place, sample in asked
        ]
        if type(self.environment).start_all is Environment.start_all:
            return [
                self._begin(row, example, start, noise) for row, (example, start, noise) in enumerate(each)
            ]
        with attributed_to(f"`start_all` of {self._who}"):
            found = self.environment.start_all(*map(list, zip(*each, strict=True)))
        if not isinstance(found, Sequence) or len(found) != len(each):
            kind = f"{len(found):,}" if isinstance(found, Sequence) else _kind(found)
            raise ComponentError(
                f"`start_all` of {self._who} must return (episode, Turn) for each: a list of {len(each):,}, got {kind}"
            )
        return [
            self._begun_well(row, example, one)
            for row, ((example, _, _), one) in enumerate(zip(each, found, strict=True))
        ]

    def _begin(self, row: int, example: Example, start: torch.Generator, noise: torch.Generator) -> Turn:
        with attributed_to(f"{self._who}, starting example `{example.id}`,"):
            found = self.environment.start(example, start, noise)
        return self._begun_well(row, example, found)

    def _begun_well(self, row: int, example: Example, found: tuple[Episode, Turn]) -> Turn:
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Turn)):
            kinds = ", ".join(type(one).__name__ for one in found) if isinstance(found, tuple) else ""
            got = f"({kinds})" if kinds else _kind(found)
            raise ComponentError(
                f"{self._who}: `start` must return (episode, Turn), and for example `{example.id}` returned {got}"
            )
        self._episodes[row], self._steps[row] = found[0], 0
        return found[1]

    @global_seeds_kept()
    def step(self, rows: Sequence[int], texts: Sequence[str]) -> Sequence[Turn]:
        for row in rows:
            self._steps[row] += 1
        if type(self.environment).step_all is Environment.step_all:
            return [self._turn(row, text) for row, text in zip(rows, texts, strict=True)]
        episodes = [self._episodes[row] for row in rows]
        with attributed_to(f"`step_all` of {self._who}"):
            turns = self.environment.step_all(episodes, texts)
        if not isinstance(turns, Sequence) or len(turns) != len(rows):
            found = f"{len(turns):,}" if isinstance(turns, Sequence) else _kind(turns)
            raise ComponentError(
                f"`step_all` of {self._who} must return a turn for each response: a list of {len(rows):,}, got {found}"
            )
        return [self._checked(turn, row, text) for turn, row, text in zip(turns, rows, texts, strict=True)]

    def _turn(self, row: int, text: str) -> Turn:
        with attributed_to(self._where(row, text)):
            turn = self._episodes[row].step(text)
        return self._checked(turn, row, text)

    def _checked(self, turn: Turn, row: int, text: str) -> Turn:
        if not isinstance(turn, Turn):
            raise ComponentError(f"{self._where(row, text)} must return a Turn, got {_kind(turn)}")
        return turn

    def _where(self, row: int, text: str) -> str:
        example, sample = self._begun[row // self.samples], row % self.samples
        turn = f"episode {sample + 1}, turn {self._steps[row]}"
        return f"{self._who}, example `{example.id}`, {turn}, told {_shown(text)},"

    def close(self, rows: Sequence[int] | None = None) -> None:
        for row in list(self._episodes) if rows is None else rows:
            episode = self._episodes.pop(row, None)
            if (close := getattr(episode, "close", None)) is None:
                continue
            with attributed_to(f"{self._who}, ending an episode of example `{self._name(row)}`,"):
                if rows is None:  # all that is left, after a fault or before one: each has its turn
                    with suppress(Exception):
                        close()
                else:
                    close()

    def _name(self, row: int) -> str:
        place = row // self.samples
        return self._begun[place].id if place < len(self._begun) else "?"


def opening(environment: Environment, examples: Sequence[Example]) -> Turn:
    """How an episode of the first example begins, for who only looks."""
    game = Playing(environment, examples[:1], 1, lambda *key: torch.Generator().manual_seed(0))
    try:
        with started(game, slice(0, 1)) as (_, firsts):
            return firsts[0]
    finally:
        if isinstance(environment, Isolated):  # nobody may come to play
            environment.pool.close()


def _shown(said: object) -> str:
    text = repr(said)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _kind(value: object) -> str:
    return "nothing; is a `return` missing?" if value is None else f"a {type(value).__name__}"
