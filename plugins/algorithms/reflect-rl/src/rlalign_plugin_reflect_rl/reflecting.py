"""An environment around another: a frozen model reflects on what is seen, and the policy chooses a numbered action.

Legend: n episodes whose turn has ended, T tokens of a reflection.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationInfo, model_validator
from torch import Generator

from rlalign import (
    ComponentError,
    Environment,
    Episode,
    Example,
    Options,
    Policy,
    RLAlignError,
    Run,
    Sampling,
    Turn,
)
from rlalign.config.registry import Registry

LABELS = (*string.digits, *string.ascii_lowercase, *string.ascii_uppercase)
"""What actions are called: each is one token of most policies."""
PROMPT = "{state}\n # Analyze:\n{reflection}\nThe actions you can take now is:\n{actions}\n # Action:\n"  # as published


class Reflecting(Environment):
    """What is seen, what a frozen model says of it and a numbered list of actions; the policy says one number."""

    paper = (
        "Runlong Zhou, Simon S. Du and Beibin Li, Reflect-RL: two-player online RL fine-tuning for LMs, 2024"
    )
    rewrites = True

    class Config(Options):
        """Options of `reflecting`."""

        env: dict[str, dict[str, Any]] = Field(
            description="the environment, by its name with its options: `{toy-corridor: {choices: true}}`; each of its "
            "turns has `choices`"
        )
        model: str | None = Field(
            "reflection", description="who reflects: its name under `models`; null: nobody"
        )
        max_new_tokens: int = Field(100, gt=0, description="tokens of a reflection")
        temperature: float = Field(0.0, ge=0, description="of reflections; 0: the most probable tokens")
        stop: tuple[str, ...] = Field((), description="a reflection ends when it holds one of these")
        prompt: str = Field(
            PROMPT,
            description="what the policy reads: `{state}`, `{reflection}` and `{actions}`, one a line, are filled in",
        )
        shuffle: bool = Field(False, description="number the actions anew at each turn")

        @model_validator(mode="after")
        def _can_be_played(self, info: ValidationInfo) -> Reflecting.Config:
            try:
                self.prompt.format(state="", reflection="", actions="")
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(
                    "prompt: only {state}, {reflection} and {actions} are filled in, and other braces are doubled: "
                    f"{error!r}"
                ) from None
            self.built(trust=bool((info.context or {}).get("trust", True)))
            return self

        def built(self, *, trust: bool = True) -> Environment:
            """The environment that is played."""
            if len(self.env) != 1:
                raise ValueError("env: expected one environment, as `env: {NAME: {OPTION: …}}`")
            ((name, options),) = self.env.items()
            try:
                cls = Registry(trust=trust).load(name).cls
            except RLAlignError as error:
                raise ValueError(f"env: {error}") from error
            if not (isinstance(cls, type) and issubclass(cls, Environment)):
                raise ValueError(f"env: `{name}` is no environment")
            told = cls.Config.model_validate_json(json.dumps(options), strict=True, context={"trust": trust})
            inner = cls(told)
            inner.name = name
            return inner

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.inner = self.config.built()
        self.turns, self.replays = self.inner.turns, self.inner.replays
        self.models = dict(self.inner.models)
        if self.config.model is not None:
            self.models[self.config.model] = "frozen"
        self.generation = self.inner.generation  # type: ignore[misc]
        self._run: Run | None = None
        self._known = 0
        """So many labels are known to be one token each."""

    def setup(self, run: Run) -> None:
        self.inner.setup(run)
        self._run = run

    def examples(self, split: str) -> Sequence[Example]:
        return self.inner.examples(split)

    def fingerprint(self, split: str) -> str | None:
        return self.inner.fingerprint(split)

    def start_all(
        self, examples: Sequence[Example], starts: Sequence[Generator], noises: Sequence[Generator]
    ) -> Sequence[tuple[Episode, Turn]]:
        begun = self.inner.start_all(examples, starts, noises)
        # What samples of a prompt read first follows from `start`; what they read later, from each one's own.
        firsts = [_own(generator) for generator in starts]
        episodes = [Reflected(self, one, _own(noise)) for (one, _), noise in zip(begun, noises, strict=True)]
        asked = [
            Turn(turn.say or example.prompt, choices=turn.choices)
            for example, (_, turn) in zip(examples, begun, strict=True)
        ]
        return list(zip(episodes, self._asked(episodes, asked, firsts), strict=True))

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        (begun,) = self.start_all([example], [start], [noise])
        return begun

    def step_all(self, episodes: Sequence[Any], texts: Sequence[str]) -> Sequence[Turn]:
        inner = [episode.inner for episode in episodes]
        turns = self.inner.step_all(inner, [e.meant(text) for e, text in zip(episodes, texts, strict=True)])
        for episode in episodes:
            episode.answered += 1
        # Nobody reads what would be said after the last turn.
        going = [i for i, turn in enumerate(turns) if not turn.over and episodes[i].answered < self.turns]
        asked = self._asked(
            [episodes[i] for i in going], [turns[i] for i in going], [episodes[i].noise for i in going]
        )
        said = dict(zip(going, asked, strict=True))
        return [said.get(i, turn) for i, turn in enumerate(turns)]

    def _asked(
        self, episodes: Sequence[Reflected], turns: Sequence[Turn], chance: Sequence[Generator]
    ) -> list[Turn]:
        """What the policies of these episodes read next."""
        seen = [episode.seen(turn) for episode, turn in zip(episodes, turns, strict=True)]
        reflections = self._reflections(seen, chance)
        rows = zip(episodes, turns, reflections, chance, strict=True)
        return [episode.ask(turn, reflection, own) for episode, turn, reflection, own in rows]

    def _reflections(self, seen: Sequence[str], chance: Sequence[Generator]) -> Sequence[str]:
        """What the frozen model says of all of them, at once."""
        c = self.config
        if (
            c.model is None or self._run is None or not seen
        ):  # `rlalign check` begins an episode without weights
            return [""] * len(seen)
        model = self._run.models[c.model]
        if not isinstance(model, Policy):
            raise ComponentError(f"models.{c.model}: `{self.name}` needs a policy, which reflects in words")
        greedy = c.temperature == 0
        how = Sampling(
            max_new_tokens=c.max_new_tokens,
            stop=c.stop,
            **({"greedy": True} if greedy else {"temperature": c.temperature}),
        )
        steps = min(c.max_new_tokens, model.horizon or c.max_new_tokens)
        # Greedily, equal sights have equal reflections.
        asked = list(dict.fromkeys(seen)) if greedy else list(seen)
        rows = [torch.zeros(1, steps) if greedy else torch.rand(1, steps, generator=own) for own in chance]
        uniforms = torch.stack(rows[: len(asked)]).clamp_min(2.0**-24)
        examples = [Example(f"reflection-{i}", text) for i, text in enumerate(asked)]
        said = model.sample(examples, how, uniforms.to(model.device)).texts
        return [dict(zip(asked, said, strict=True))[text] for text in seen] if greedy else said

    def check_labels(self, count: int) -> None:
        """The first labels are one token each, so that a choice is one probability."""
        if count > len(LABELS):
            raise ComponentError(
                f"`{self.name}` numbers up to {len(LABELS)} actions, and there are {count:,} at a turn"
            )
        if self._run is None or count <= self._known:
            return
        policy = self._run.models.policy
        for label, word in zip(LABELS, policy.words(LABELS[:count]), strict=False):
            if len(word) != 1:
                raise ComponentError(
                    f"`{self.name}` calls actions by one token each, and the policy needs several for {label!r}"
                )
            if (read := policy.text(torch.tensor(word))) != label:
                raise ComponentError(
                    f"`{self.name}` calls an action {label!r}, and the policy writes {read!r} for it"
                )
        self._known = count


class Reflected:
    """An episode whose turns are reflected on."""

    def __init__(self, env: Reflecting, inner: Episode, noise: Generator) -> None:
        self.env, self.inner, self.noise = env, inner, noise
        self.actions: Mapping[str, str] = {}
        """By label, as they were asked for last."""
        self.answered = 0

    def seen(self, turn: Turn) -> str:
        """What the one who reflects reads: what the episode says aside, or else what the policy is told."""
        if not isinstance(turn.say, str):
            raise ComponentError(
                f"`{self.env.name}` writes prompts of plain text, and `{self.env.inner.name}` says chat messages"
            )
        aside = getattr(self.inner, "aside", None)
        return turn.say if aside is None else str(aside())

    def ask(self, turn: Turn, reflection: str, chance: Generator) -> Turn:
        """What the policy reads: state, reflection and actions."""
        if not turn.choices:
            raise ComponentError(
                f"`{self.env.name}` numbers the `choices` of each turn, and `{self.env.inner.name}` gave none"
            )
        count = len(turn.choices)
        self.env.check_labels(count)
        order = torch.randperm(count, generator=chance).tolist() if self.env.config.shuffle else range(count)
        self.actions = {label: turn.choices[i] for label, i in zip(LABELS, order, strict=False)}
        listed = "\n".join(f"{label}. {action}" for label, action in self.actions.items())
        say = self.env.config.prompt.format(state=turn.say, reflection=reflection, actions=listed)
        return Turn(say, turn.reward, choices=tuple(self.actions), metrics=turn.metrics)

    def meant(self, text: str) -> str:
        """The action of a label."""
        if text not in self.actions:
            raise ComponentError(
                f"`{self.env.name}` asked for one of {', '.join(self.actions)} and was told {text!r}"
            )
        return self.actions[text]

    def step(self, text: str) -> Turn:
        (turn,) = self.env.step_all([self], [text])
        return turn

    def close(self) -> None:
        close = getattr(self.inner, "close", None)
        if close is not None:
            close()


def _own(generator: Generator) -> Generator:
    """One that draws on its own, whatever else is drawn of that one."""
    return Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
