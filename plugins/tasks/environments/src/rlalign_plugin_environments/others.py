"""Other people's environments, by what they can do and not by their class: OpenEnv, SkyRL-gym, TextWorld."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, computed_field
from torch import Generator

from rlalign import ConfigError, Environment, Episode, Example, Options, Turn
from rlalign.data.example import Prompt
from rlalign_plugin_dataset import Dataset
from rlalign_plugin_environments.functions import named
from rlalign_plugin_environments.gym import SEED
from rlalign_plugin_function_reward.source import FunctionPath, digests


class _Ended:
    """An episode over somebody's game, which is closed with it."""

    def __init__(self, game: Any) -> None:
        self._game = game

    def close(self) -> None:
        if (close := getattr(self._game, "close", None)) is not None:
            close()


# -- OpenEnv ------------------------------------------------------------------------------------------------------


class OpenEnv(Environment):
    """`reset(seed)` and `step(action)` give an observation, a reward and whether it is over, as OpenEnv's do."""

    class Config(Options):
        """Options of `openenv`."""

        make: FunctionPath = Field(
            description="a function () → an environment, or a client of one that is served"
        )
        act: FunctionPath | None = Field(
            None, description="a function (text) → what `step` takes; null: the text itself"
        )
        see: FunctionPath | None = Field(
            None, description="a function (observation) → text or messages; null: its fields as JSON"
        )
        turns: int = Field(16, gt=0, le=10_000, description="responses of the longest episode")
        tokens: int = Field(2048, gt=0, description="tokens of the longest episode, what is told included")
        size: int = Field(
            256, gt=0, le=1_000_000, description="examples in each split; each draw has its seed"
        )
        replays: bool = Field(
            True, description="the same seed and actions give the same turns; false: they are written down"
        )

        @computed_field(description="a hash of the code of the functions it names")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.make, self.act, self.see])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens, self.replays = config.turns, config.tokens, config.replays

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-{i}", "") for i in range(self.config.size)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        game = named(self.config.make)()
        if inspect.iscoroutinefunction(getattr(game, "reset", None)) and hasattr(game, "sync"):
            game = game.sync()
        seed = int(torch.randint(SEED, (1,), generator=start))
        takes = inspect.signature(game.reset).parameters.values()
        seeded = any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in takes)
        found = game.reset(seed=seed) if seeded else game.reset()
        return _OpenEnvGame(self, game), Turn(self.seen(found))

    def seen(self, found: Any) -> Prompt:
        """What the policy reads of a result."""
        observation = getattr(found, "observation", found)
        if self.config.see is not None:
            return named(self.config.see)(observation)  # type: ignore[no-any-return]
        if isinstance(observation, str):
            return observation
        if hasattr(observation, "model_dump"):
            observation = observation.model_dump()
        held = getattr(observation, "__dict__", observation)
        if isinstance(held, Mapping):
            held = {k: v for k, v in held.items() if k not in ("done", "reward", "metadata")}
        return json.dumps(held, default=str)


class _OpenEnvGame(_Ended):
    def __init__(self, owner: OpenEnv, game: Any) -> None:
        super().__init__(game)
        self._owner = owner

    def step(self, text: str) -> Turn:
        act = self._owner.config.act
        found = self._game.step(text if act is None else named(act)(text))
        done = bool(getattr(found, "done", False))
        return Turn(
            "" if done else self._owner.seen(found), float(getattr(found, "reward", 0) or 0), done=done
        )


# -- SkyRL-gym ----------------------------------------------------------------------------------------------------


class SkyRLGym(Dataset, Environment):
    """`init(messages)` and `step(text)` give messages, a reward and whether it is over, as SkyRL-gym's do."""

    class Config(Dataset.Config):
        """Options of `skyrl-gym`: those of `dataset`, and its own."""

        make: FunctionPath = Field(description="a function (example) → an environment, made for this example")
        turns: int = Field(8, gt=0, le=10_000, description="responses of the longest episode")
        tokens: int = Field(2048, gt=0, description="tokens of the longest episode, what is told included")

        @computed_field(description="a hash of the code of the functions it names")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.make])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens = config.turns, config.tokens

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        game, said = named(self.config.make)(example), example.prompt
        chat = [{"role": "user", "content": said}] if isinstance(said, str) else [dict(m) for m in said]
        found = game.init(chat)
        return _SkyRLGame(game), Turn(found[0] if isinstance(found, tuple) else found)


class _SkyRLGame(_Ended):
    def step(self, text: str) -> Turn:
        found = self._game.step(text)
        numbers = {k: v for k, v in (found.get("metadata") or {}).items() if isinstance(v, int | float)}
        over = bool(found["done"])
        return Turn([] if over else found["observations"], float(found["reward"]), done=over, metrics=numbers)


# -- TextWorld ----------------------------------------------------------------------------------------------------


class TextWorld(Environment):
    """Text adventures of TextWorld, an example a game file; what may be done next are the choices."""

    class Config(Options):
        """Options of `textworld`."""

        path: Path = Field(
            strict=False,
            description="a game (`.z8`), or a folder of games, or one with a folder a split",
        )
        choices: bool = Field(True, description="nothing but an admissible command may be said")
        turns: int = Field(50, gt=0, le=10_000, description="commands of the longest episode")
        tokens: int = Field(4096, gt=0, description="tokens of the longest episode, what is told included")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens = config.turns, config.tokens

    def examples(self, split: str) -> Sequence[Example]:
        path = self.config.path
        folder = path / split if (path / split).is_dir() else path
        games = (
            [folder]
            if folder.is_file()
            else sorted(p for p in folder.glob("*") if re.fullmatch(r"\.z[1-8]", p.suffix))
        )
        if not games:
            raise ConfigError(f"{folder}: there is no game (`.z8`) for the split `{split}`")
        return [Example(f"{split}-{game.stem}", "", meta={"game": str(game)}) for game in games]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        try:
            textworld = import_module("textworld")
        except ImportError:
            raise ConfigError(
                "`textworld` is not installed: `pip install textworld` (the extra `textworld` of "
                "rlalign-plugin-environments)"
            ) from None
        infos = textworld.EnvInfos(admissible_commands=True, score=True, won=True, lost=True)
        game = textworld.start(example.meta["game"], infos)
        game.seed(int(torch.randint(SEED, (1,), generator=start)))
        state = game.reset()
        return _TextWorldGame(game, self.config.choices), _told(state, self.config.choices)


class _TextWorldGame(_Ended):
    def __init__(self, game: Any, choices: bool) -> None:
        super().__init__(game)
        self._choices, self._score = choices, 0.0

    def step(self, text: str) -> Turn:
        state, score, done = self._game.step(text.strip())
        gained, self._score = float(score) - self._score, float(score)
        if done:
            return Turn(reward=gained, done=True, metrics={"won": float(bool(state.get("won")))})
        return _told(state, self._choices, gained)


def _told(state: Mapping[str, Any], choices: bool, reward: float = 0.0) -> Turn:
    commands = state.get("admissible_commands") if choices else None
    return Turn(f"{state['feedback'].strip()}\n> ", reward, choices=tuple(commands) if commands else None)
