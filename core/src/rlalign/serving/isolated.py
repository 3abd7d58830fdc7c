"""An environment whose episodes live in processes of their own: begun there, stepped, and played again elsewhere.

An episode follows from its start, its noise and what was said to it. So where its process is too slow, dies or says
what is no turn, the process is killed, and its episodes are begun again in another one and told the same texts. What
fails a second time is a bad episode, which ends the run or is left out.

All processes are at work at once. Each is asked for turns of several episodes at a time, as long as nothing goes wrong.
Where it is lost, nobody knows over which of these: each is then asked for alone.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Generator

from rlalign.config.pipeline import Apart, Item
from rlalign.data.example import Example
from rlalign.data.turn import Episode, Turn
from rlalign.errors import ComponentError, shortened, shown
from rlalign.interface.component import Component
from rlalign.interface.environment import Environment
from rlalign.interface.run import Run
from rlalign.records.answers import Answers
from rlalign.serving.asking import Asker
from rlalign.serving.client import Client, End, process
from rlalign.serving.host import Recipe
from rlalign.serving.protocol import Broken
from rlalign.serving.questions import example_written
from rlalign.serving.stage import turn_of

MOST_FAILURES = 2
"""Of one episode; then it is a bad one. So often a process is begun, too."""
TOGETHER = 16
"""Turns that a process is asked for at once."""
_SAID = 300
"""Characters of a text that a message shows."""


@dataclass(eq=False)
class Played:
    """An episode, from this side."""

    pool: Pool
    number: int
    example: str
    begin: dict[str, Any]
    home: End | None = None
    """Where it lives; where that is no more, it is begun again when it is stepped next."""
    heard: list[dict[str, Any]] = field(default_factory=list)
    """Its turns, the first one included."""
    texts: list[str] = field(default_factory=list)
    failures: int = 0
    suspect: bool = False
    """A process was lost over it, or over another."""

    def step(self, text: str) -> Turn:
        return self.pool.play([(self, text)])[0]

    def close(self) -> None:
        self.pool.end(self)


Asked = tuple[Played, str | None]
"""An episode, and what it is told; None: it only begins."""


class _Slot:
    """A process, and those that take its place, with a thread that asks it."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.asker = Asker(name)
        self.over: list[int] = []
        """Episodes that it may forget."""

    def close(self) -> None:
        self.client.close()
        self.asker.end()


class Pool:
    """The processes. Episodes are dealt out to them by their numbers."""

    def __init__(self, recipe: Recipe, limits: Apart, place: str, replays: bool) -> None:
        self._recipe, self._limits, self._replays = recipe, limits, replays
        self._who = ", ".join(filter(None, (f"environment `{recipe.name}` (isolated)", place)))
        self._numbers = itertools.count()
        self._slots: dict[int, _Slot] = {}
        self.log: Path | None = None
        """Where what the processes print is kept."""

    def begin(self, asked: Iterable[tuple[Example, Generator, Generator]]) -> Sequence[tuple[Episode, Turn]]:
        episodes = []
        for example, start, noise in asked:
            seeds = {"start": start.initial_seed(), "noise": noise.initial_seed()}
            begin = {"example": example_written(example), **seeds}
            episodes.append(Played(self, next(self._numbers), example.id, begin))
        return list(zip(episodes, self.play([(each, None) for each in episodes]), strict=True))

    def play(self, asked: Sequence[Asked]) -> list[Turn]:
        """The turns that come back, all processes at work at once."""
        found: dict[int, Turn] = {}
        while left := [one for one in asked if one[0].number not in found]:
            slots: dict[int, list[Asked]] = {}
            for one in left:
                slots.setdefault(one[0].number % self._limits.workers, []).append(one)
            self._all({slot: partial(self._play, some, found) for slot, some in slots.items()})
        return [found[episode.number] for episode, _ in asked]

    def end(self, episode: Played) -> None:
        """Forget an episode. Its process hears of it with the next question."""
        if (slot := self._slots.get(episode.number % self._limits.workers)) and episode.home:
            slot.over.append(episode.number)
            episode.home = None

    def ready(self) -> None:
        """Have all processes there, so that what is wrong with the environment is told at once."""
        self._all(dict.fromkeys(range(self._limits.workers), self._ready))

    def close(self) -> None:
        """End the processes."""
        while self._slots:
            self._slots.popitem()[1].close()

    # -- asking -------------------------------------------------------------------------------------------

    def _all(self, work: Mapping[int, Callable[[_Slot], object]]) -> None:
        """Do these, each with its process, at once."""
        try:
            doing = []
            for number, do in work.items():
                slot = self._slot(number)
                doing.append(slot.asker.submit(partial(do, slot)))
            for done in wait(doing, return_when=FIRST_EXCEPTION).done:
                done.result()
        except BaseException:  # Ctrl-C, too
            self.close()
            raise

    def _slot(self, number: int) -> _Slot:
        if number not in self._slots:
            client = Client(
                self._who, self._limits.seconds, lambda: process(self._recipe, self._limits, self.log)
            )
            self._slots[number] = _Slot(client, f"plays-{self._recipe.name}-{number}")
        return self._slots[number]

    def _ready(self, slot: _Slot) -> End:
        for _ in range(MOST_FAILURES - 1):
            with suppress(Broken):
                return slot.client.ready()
        try:
            return slot.client.ready()
        except Broken as error:
            raise ComponentError(f"{self._who}: its process {error}") from error

    def _play(self, asked: Sequence[Asked], found: dict[int, Turn], slot: _Slot) -> None:
        """Ask a process for the turns of some episodes. One that fails may not be found: it is asked again."""
        if self._replays:
            self._together(asked, found, slot)
        for one in asked:
            if one[0].number not in found:
                self._alone(one, found, slot)

    def _together(self, asked: Sequence[Asked], found: dict[int, Turn], slot: _Slot) -> None:
        """Ask for many turns at a time, until the process is lost over some."""
        home = self._ready(slot)
        left = [one for one in asked if one[0].home is home or not one[0].heard]
        while left:
            some = left[:TOGETHER]
            try:
                turns = self._ask(slot, some)
            except Broken:
                for episode, _ in some:
                    episode.suspect = True
                return
            for one, said in zip(some, turns, strict=False):
                self._take(one, said, home, found)
            left = left[len(turns) :]

    def _alone(self, one: Asked, found: dict[int, Turn], slot: _Slot) -> None:
        """Ask for one turn, of an episode that may have to be begun again."""
        episode, _ = one
        home = self._ready(slot)
        try:
            if episode.heard and episode.home is not home:
                self._again(episode, slot)
            [said] = self._ask(slot, [one])
        except Broken as error:
            self._failed(one, str(error), found)
        else:
            self._take(one, said, home, found)

    def _again(self, episode: Played, slot: _Slot) -> None:
        """Begin an episode again, and tell it what it was told before."""
        if not self._replays:
            raise Broken("was lost with its process, and it cannot be played again")
        for text, heard in zip([None, *episode.texts], episode.heard, strict=True):
            [said] = self._ask(slot, [(episode, text)])
            if "error" in said:
                raise Broken(said["error"])
            if said["turn"] != heard:
                raise Broken(
                    "plays otherwise when it is played again; say `replays = False` if it follows from more than its "
                    "start, its noise and what is said"
                )

    def _ask(self, slot: _Slot, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The turns that follow, or what went wrong with some; there may be fewer than were asked for."""
        over, slot.over = slot.over, []
        play = [
            {"episode": episode.number, **({"begin": episode.begin} if text is None else {"text": text})}
            for episode, text in asked
        ]
        return slot.client.ask({"end": over, "play": play}, partial(_turns, len(play)))

    def _take(self, one: Asked, said: dict[str, Any], home: End, found: dict[int, Turn]) -> None:
        episode, text = one
        if "error" in said:
            return self._failed(one, said["error"], found)
        episode.home, episode.suspect = home, False
        episode.heard.append(said["turn"])
        if text is not None:
            episode.texts.append(text)
        found[episode.number] = turn_of(said["turn"])

    # -- when it goes wrong -------------------------------------------------------------------------------

    def _failed(self, one: Asked, why: str, found: dict[int, Turn]) -> None:
        """It is begun again, or it is a bad one."""
        episode, text = one
        episode.home = None
        episode.failures += 1 + episode.suspect
        episode.suspect = False
        if episode.failures >= MOST_FAILURES or (episode.heard and not self._replays):
            found[episode.number] = self._bad(episode, text, why)

    def _bad(self, episode: Played, text: str | None, why: str) -> Turn:
        """A bad episode's last turn, or the end of the run."""
        told = "" if text is None else f", told {shortened(repr(text), _SAID)}"
        turn = "at its start" if text is None else f"at turn {len(episode.texts) + 1}{told}"
        often = " (as it did before)" if episode.failures > 1 else ""
        said = shown(f"an episode of example `{episode.example}` {turn}: it {why}{often}")
        if self._limits.on_bad_episode == "stop" or not episode.heard:
            before = "".join(f"\n    {i}. {text!r}" for i, text in enumerate(episode.texts, 1))
            transcript = f"\nSaid in it before:{shortened(shown(before), 2_000)}" if before else ""
            raise ComponentError(f"{self._who}: {said}{transcript}")
        return Turn(cut=True, failed=said)


def _turns(most: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was answered, checked; ValueError says that these are no turns."""
    turns: list[dict[str, Any]] = answer["turns"]
    if not 0 < len(turns) <= most:
        raise ValueError(f"answered {len(turns)} turns where {most} were asked for")
    for said in turns:
        try:
            "error" in said or turn_of(said["turn"])
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"answered what is no Turn: {error}") from None
    return turns


class Isolated(Environment):
    """The part of an isolated environment that is in the run's own process; all but its episodes is as it was."""

    pool: Pool
    answers: Answers | None = None
    """Beside the record of what served rewards answered lies what the processes print; set by the core."""

    def setup(self, run: Run) -> None:
        if self.answers is not None:
            self.pool.log = self.answers.folder / f"{self.name}.log"
        self.pool.ready()

    def start_all(
        self, examples: Sequence[Example], starts: Sequence[Generator], noises: Sequence[Generator]
    ) -> Sequence[tuple[Episode, Turn]]:
        return self.pool.begin(zip(examples, starts, noises, strict=True))

    def step_all(self, episodes: Sequence[Episode], texts: Sequence[str]) -> Sequence[Turn]:
        return self.pool.play([(each, text) for each, text in zip(episodes, texts, strict=True)])  # type: ignore[misc]


def unplayable(real: Component) -> str | None:
    """Why a task cannot be played in other processes, in words that follow its name."""
    if not isinstance(real, Environment):
        return "is no environment: it begins no episodes that could go wrong"
    if type(real).step_all is not Environment.step_all:
        return "answers all episodes in one call (`step_all`), and they would be in several processes"
    if type(real).state_dict is not Component.state_dict:
        return "keeps a state (`state_dict`), which would be lost with its process"
    return None


def isolated(item: Item, folder: Path | None, *, trust: bool, seed: int) -> Environment:
    """What stands in a pipeline for an environment whose episodes are elsewhere."""
    assert item.apart is not None
    base, about = item.cls, {"__module__": item.cls.__module__, "__doc__": item.cls.__doc__}
    made: Isolated = type(base.__name__, (Isolated, base), about)(item.options)
    made.name = item.name
    recipe = Recipe.of(item, folder, trust=trust, seed=seed)
    made.pool = Pool(recipe, item.apart, item.place, made.replays)
    weakref.finalize(made, made.pool.close)
    return made
