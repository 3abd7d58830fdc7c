"""An environment whose episodes live in processes of their own: begun there, stepped, and played again elsewhere.

An episode follows from its start, its noise and what was said to it. So where its process is too slow, dies or says
what is no turn, the process is killed, and its episodes are begun again in another one and told the same texts. What
fails a second time is a bad episode, which ends the run or is left out.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Generator

from rlalign.config.pipeline import Apart, Item
from rlalign.data.example import Example
from rlalign.data.limits import EPISODE_BYTES
from rlalign.data.turn import Episode, Turn
from rlalign.errors import ComponentError, shortened, shown
from rlalign.interface.component import Component
from rlalign.interface.environment import Environment
from rlalign.interface.run import Run
from rlalign.records.answers import Answers
from rlalign.serving.child import Child
from rlalign.serving.host import Recipe
from rlalign.serving.protocol import Broken, Refused
from rlalign.serving.questions import example_written
from rlalign.serving.stage import turn_of

MOST_FAILURES = 2
"""Of one episode; then it is a bad one."""
_SAID = 300
"""Characters of a text that a message shows."""


class _Fault(Exception):
    """An episode failed, and its process goes on: in words that follow its name."""


@dataclass(eq=False)
class Played:
    """An episode, from this side."""

    pool: Pool
    number: int
    example: str
    begin: dict[str, Any]
    child: Child | None = None
    """Where it lives; None: nowhere, and it is begun again when it is stepped next."""
    heard: list[dict[str, Any]] = field(default_factory=list)
    """Its turns, the first one included."""
    texts: list[str] = field(default_factory=list)
    failures: int = 0

    def step(self, text: str) -> Turn:
        return self.pool.play([(self, text)])[0]

    def close(self) -> None:
        self.pool.end(self)


@dataclass
class _Asked:
    """What an episode was asked in one frame."""

    episode: Played
    text: str | None
    """None: it only begins."""
    known: int = 0
    """Turns that it gave before, and gives again."""


class Pool:
    """The processes. Episodes are dealt out to them by their numbers."""

    def __init__(self, recipe: Recipe, limits: Apart, place: str, replays: bool) -> None:
        self._recipe, self._limits, self._replays = recipe, limits, replays
        self._who = ", ".join(filter(None, (f"environment `{recipe.name}` (isolated)", place)))
        self._numbers = itertools.count()
        self._children: dict[int, Child] = {}
        self._over: dict[int, list[int]] = {}
        """Episodes that a process may forget."""
        self.log: Path | None = None
        """Where what the processes print is kept."""

    def begin(self, asked: Iterable[tuple[Example, Generator, Generator]]) -> Sequence[tuple[Episode, Turn]]:
        episodes = []
        for example, start, noise in asked:
            seeds = {"start": start.initial_seed(), "noise": noise.initial_seed()}
            begin = {"example": example_written(example), **seeds}
            episodes.append(Played(self, next(self._numbers), example.id, begin))
        return list(zip(episodes, self.play([(each, None) for each in episodes]), strict=True))

    def play(self, asked: Sequence[tuple[Played, str | None]]) -> list[Turn]:
        """The turns that come back, all processes at work at once."""
        found: dict[int, Turn] = {}
        try:
            while left := [_Asked(*one) for one in asked if one[0].number not in found]:
                slots: dict[int, list[_Asked]] = {}
                for one in left:
                    slots.setdefault(one.episode.number % self._limits.workers, []).append(one)
                sent = {slot: self._send(slot, some, found) for slot, some in slots.items()}
                for slot, some in sent.items():
                    self._hear(slot, some, found)
        except BaseException:  # Ctrl-C, too
            self.close()  # what is yet to come would be taken for answers to other questions
            raise
        return [found[episode.number] for episode, _ in asked]

    def end(self, episode: Played) -> None:
        """Forget an episode. Its process hears of it with the next question."""
        if episode.child is not None:
            self._over.setdefault(episode.number % self._limits.workers, []).append(episode.number)
            episode.child = None

    def close(self) -> None:
        """End the processes."""
        for slot in list(self._children):
            self._lose(slot)

    # -- asking -------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Have a process there, so that what is wrong with the environment is told at once."""
        self._child(0)

    def _child(self, slot: int) -> Child:
        if slot not in self._children:
            child = Child(self._recipe, self._limits.memory, self.log)
            self._children[slot] = child  # before it is ready: `close` ends it
            try:
                child.ready()
            except (Broken, Refused) as error:
                said = self._last_words(child, error)
                self._lose(slot)
                raise ComponentError(f"{self._who}: its process {said}") from error
        return self._children[slot]

    def _send(self, slot: int, asked: Sequence[_Asked], found: dict[int, Turn]) -> list[_Asked]:
        """Ask a process; what is left of the questions."""
        child, going, frame = self._child(slot), list[_Asked](), list[dict[str, Any]]()
        for one in asked:
            episode = one.episode
            fresh = episode.child is not child
            if fresh and episode.heard and not self._replays:
                self._bad(one, "was lost with its process, and it cannot be played again", found)
                continue
            one.known = len(episode.heard) if fresh else 0
            texts = [*(episode.texts if fresh else ()), *([] if one.text is None else [one.text])]
            frame.append(
                {"episode": episode.number, "begin": episode.begin if fresh else None, "texts": texts}
            )
            going.append(one)
        try:
            child.channel.send({"end": self._over.pop(slot, []), "play": frame}, self._limits.seconds)
        except Broken as error:
            said = self._last_words(child, error)
            self._lose(slot)
            if going:
                self._charge(going[0], said, found)
            return []
        return going

    def _hear(self, slot: int, asked: Sequence[_Asked], found: dict[int, Turn]) -> None:
        for one in asked:
            child = self._children[slot]
            try:
                said = self._answers(child, one)
            except _Fault as error:
                self._charge(one, str(error), found)
            except (Broken, Refused) as error:
                why = self._last_words(child, error)
                self._lose(slot)
                self._charge(one, why, found)
                return  # the others are asked again
            else:
                episode = one.episode
                episode.child = child
                episode.heard.append(said)
                if one.text is not None:
                    episode.texts.append(one.text)
                found[episode.number] = turn_of(said)

    def _answers(self, child: Child, one: _Asked) -> dict[str, Any]:
        """What comes back for its last text; what came back before comes again."""
        for known in [*one.episode.heard[: one.known], None]:
            answer = child.channel.receive(self._limits.seconds, EPISODE_BYTES)
            if "error" in answer:
                raise _Fault(str(answer["error"]))
            said = answer.get("turn")
            try:
                turn_of(said)  # type: ignore[arg-type]
            except (TypeError, ValueError, KeyError) as error:
                raise Broken(f"answered what is no Turn: {error}") from None
            if known is not None and said != known:
                raise _Fault(
                    "plays otherwise when it is played again; say `replays = False` if it follows from more than its "
                    "start, its noise and what is said"
                )
        assert isinstance(said, dict)
        return said

    # -- when it goes wrong -------------------------------------------------------------------------------

    def _charge(self, one: _Asked, why: str, found: dict[int, Turn]) -> None:
        """An episode failed: it is begun again, or it is a bad one."""
        episode = one.episode
        episode.child = None
        episode.failures += 1
        if episode.failures >= MOST_FAILURES or (episode.heard and not self._replays):
            self._bad(one, why, found)

    def _bad(self, one: _Asked, why: str, found: dict[int, Turn]) -> None:
        episode = one.episode
        told = "" if one.text is None else f", told {shortened(repr(one.text), _SAID)}"
        turn = "at its start" if one.text is None else f"at turn {len(episode.texts) + 1}{told}"
        often = " (as it did before)" if episode.failures > 1 else ""
        said = shown(f"an episode of example `{episode.example}` {turn}: it {why}{often}")
        if self._limits.on_bad_episode == "stop" or not episode.heard:
            before = "".join(f"\n    {i}. {text!r}" for i, text in enumerate(episode.texts, 1))
            transcript = f"\nSaid in it before:{shortened(shown(before), 2_000)}" if before else ""
            raise ComponentError(f"{self._who}: {said}{transcript}")
        found[episode.number] = Turn(cut=True, failed=said)

    def _lose(self, slot: int) -> None:
        child = self._children.pop(slot, None)
        self._over.pop(slot, None)
        if child is not None:
            child.close()

    @staticmethod
    def _last_words(child: Child, error: Exception) -> str:
        """What happened, in words that follow its name; called before the process is ended."""
        said = child.how_it_ended() if str(error).startswith("closed the connection") else str(error)
        words = child.last_words()
        return f"{said}; the last that it printed:\n{words}" if words else said


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
