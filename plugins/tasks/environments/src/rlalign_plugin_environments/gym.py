"""Games of Gymnasium in which one of a few actions is taken at a time: actions have names, words tell what is seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import Annotated, Any

import numpy
import torch
from pydantic import Field, computed_field
from torch import Generator

from rlalign import ConfigError, Environment, Episode, Example, Options, RunsCode, Turn
from rlalign.data.example import Prompt
from rlalign_plugin_environments.functions import named
from rlalign_plugin_function_reward.source import FunctionPath, digests

SEED = 2**31 - 1
"""Seeds are below it."""


class Gym(Environment):
    """A game of Gymnasium. `terminated` is done, `truncated` is cut, and `info["action_mask"]` narrows the choices."""

    class Config(Options):
        """Options of `gymnasium`."""

        id: str = Field(pattern=r"^[\w./-]+$", description="the game, such as `Taxi-v4`")
        package: Annotated[str | None, RunsCode] = Field(
            None,
            description="the module that registers it, where that is not Gymnasium itself: `minigrid`",
        )
        arguments: dict[str, Any] = Field({}, description="passed to `gymnasium.make`")
        actions: tuple[str, ...] = Field(
            (), description="what to say for action 0, 1, 2, …; none: the numbers themselves"
        )
        see: FunctionPath | None = Field(
            None,
            description="a function (game, observation, info) → text or messages, what the policy reads; null: the "
            "observation as Python writes it",
        )
        choices: bool = Field(
            True,
            description="nothing but an action's name may be said; false: the action is the last line, and what is "
            "none moves nothing",
        )
        steps: int | None = Field(
            None, gt=0, description="actions of the longest episode; null: as the game says, or 100"
        )
        tokens: int = Field(2048, gt=0, description="tokens of the longest episode, what is told included")
        starts: int | None = Field(
            None, gt=0, le=SEED, description="how many seeds an episode may begin with, 0, 1, …; null: any"
        )
        size: int = Field(
            256,
            gt=0,
            le=1_000_000,
            description="examples in each split; each draw of one has a seed of its own",
        )

        @computed_field(description="a hash of the code of the functions it names")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.see])

    config: Config
    generation = {"temperature": 1.0}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with _told(config.id):
            most = self._library().spec(config.id).max_episode_steps
        most = config.arguments.get("max_episode_steps") or most
        if config.steps and most and config.steps > most:
            raise ConfigError(
                f"`{config.id}` ends after {most:,} actions, and `steps` is {config.steps:,}; say "
                f"`arguments: {{max_episode_steps: {config.steps}}}` to let it go on"
            )
        self.turns = config.steps or most or 100
        self.tokens = config.tokens

    def _library(self) -> Any:
        try:
            library = import_module("gymnasium")
        except ImportError:
            raise ConfigError(
                "`gymnasium` is not installed: `pip install gymnasium` (the extra `gymnasium` of "
                "rlalign-plugin-environments)"
            ) from None
        if self.config.package is not None:
            import_module(self.config.package)
        return library

    def make(self) -> Any:
        """A game that nobody plays yet."""
        with _told(self.config.id):
            return self._library().make(self.config.id, **self.config.arguments)

    @cached_property
    def actions(self) -> tuple[str, ...]:
        """What is said for action 0, 1, 2, …"""
        game, c = self.make(), self.config
        space = game.action_space
        count = getattr(space, "n", None)
        game.close()
        if count is None or getattr(space, "start", 0) != 0:
            raise ConfigError(f"the actions of `{c.id}` are {space}, and only `Discrete` ones have names")
        names = c.actions or tuple(map(str, range(int(count))))
        if len(names) != count or len(set(names)) != count:
            raise ConfigError(f"`{c.id}` has {count} actions, and `actions` names {len(set(names))}")
        return names

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-{i}", "") for i in range(self.config.size)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        game = self.make()
        try:
            observation, info = game.reset(seed=_drawn(start, self.config.starts or SEED))
            # Episodes of one start share where they begin, and no more: what comes of chance later is each one's own.
            game.unwrapped.np_random = numpy.random.default_rng(_drawn(noise))
        except BaseException:
            game.close()
            raise
        episode = _Game(self, game)
        return episode, Turn(episode.seen(observation, info), choices=self.choices(info))

    def choices(self, info: Mapping[str, Any]) -> tuple[str, ...] | None:
        """What may be said next."""
        if not self.config.choices:
            return None
        mask = info.get("action_mask")
        allowed = (
            self.actions if mask is None else [a for a, may in zip(self.actions, mask, strict=True) if may]
        )
        return tuple(allowed) or self.actions


class _Game:
    """One game."""

    def __init__(self, owner: Gym, game: Any) -> None:
        self._owner, self._game, self._chats = owner, game, False

    def step(self, text: str) -> Turn:
        lines = text.strip().splitlines()
        said = lines[-1].strip() if lines else ""
        if said not in self._owner.actions:
            told = f"Say one of: {', '.join(self._owner.actions)}"
            say: Prompt = [{"role": "user", "content": told}] if self._chats else f"{told}\n"
            return Turn(say, metrics={"no_action": 1})
        observation, reward, terminated, truncated, info = self._game.step(self._owner.actions.index(said))
        over = bool(terminated or truncated)
        return Turn(
            "" if over else self.seen(observation, info),
            float(reward),
            done=bool(terminated),
            cut=bool(truncated),
            choices=None if over else self._owner.choices(info),
        )

    def seen(self, observation: Any, info: Mapping[str, Any]) -> Prompt:
        """What the policy reads."""
        see = self._owner.config.see
        said: Prompt = str(observation) if see is None else named(see)(self._game, observation, info)
        self._chats = not isinstance(said, str)
        return said

    def close(self) -> None:
        self._game.close()


def _drawn(generator: Generator, below: int = SEED) -> int:
    return int(torch.randint(below, (1,), generator=generator))


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What Gymnasium says of a game that there is not, as a fault of the pipeline."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"Gymnasium cannot make `{name}`: {error}") from error
