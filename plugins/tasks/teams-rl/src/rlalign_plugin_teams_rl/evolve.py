"""`evolve`: an instruction is rewritten step by step; the policy says how, and a reviewer whether it matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field, computed_field, field_validator, model_validator
from torch import Generator

from rlalign import (
    ComponentError,
    ConfigError,
    Environment,
    Episode,
    Example,
    Options,
    Rollout,
    Run,
    Sampling,
    Turn,
    hookimpl,
)
from rlalign_plugin_dataset import Dataset
from rlalign_plugin_function_reward.source import FunctionPath, digests
from rlalign_plugin_teams_rl.players import (
    ACTIONS,
    Called,
    Player,
    policy_named,
    read_prompts,
    reviewer,
    rewriter,
)

DIFFERENT = "Not Equal"
"""What a reviewer answers, to the letter, where a rewriting asks for something else than what was rewritten."""


class Writing(Sampling):
    """How a model that plays writes."""

    top_k: int = Field(40, ge=0, description="keep the k most probable tokens; 0 keeps all")
    top_p: float = Field(0.95, gt=0, le=1, description="keep the smallest set of this probability")
    max_new_tokens: int = Field(512, gt=0, description="an answer is cut after this many tokens")


class Evolve(Environment):
    """Rewrite an instruction in several steps. A step pays 1 where the reviewer says that it made a difference."""

    paper = (
        "Shangding Gu et al., TeaMs-RL: Teaching LLMs to Generate Better Instruction Datasets via"
        " Reinforcement Learning, 2024"
    )

    class Config(Options):
        """Options of `evolve`."""

        seeds: Dataset.Config = Field(
            description="the instructions that are begun with: options of `dataset`, of which the prompt is read"
        )
        rewrite: FunctionPath | None = Field(
            None,
            description="who rewrites: a function (actions, instructions) → instructions, lists of texts; with a third "
            "parameter `seeds` it is given numbers to draw from",
        )
        review: FunctionPath | None = Field(
            None,
            description="who judges: a function (befores, afters) → answers, likewise; `Not Equal` pays 1, anything "
            "else nothing",
        )
        rewriter: str | None = Field(
            None, description="instead of `rewrite`: the name of a frozen model in `models`"
        )
        reviewer: str | None = Field(
            None, description="instead of `review`: likewise; it may be the same model"
        )
        prompts: Path | None = Field(
            None,
            description="what such models are asked: a JSON object with a prompt for each action and `review`; null: "
            "those that come with the package",
        )
        sampling: Writing = Field(
            Writing(),
            description="how such models write: options of `generation`, of which `top_p` is 0.95, `top_k` 40 and "
            "`max_new_tokens` 512 unless this says otherwise",
        )
        steps: int = Field(6, gt=0, le=1_000, description="rewritings in an episode")
        breadth_at: tuple[Annotated[int, Field(gt=0)], ...] = Field(
            (),
            description="steps, from 1 on, at which `breadth` is the only choice; `[2, 5]` where the released code "
            "writes its data",
        )
        tokens: int = Field(
            512, gt=0, le=10**6, description="the longest episode of a policy that reads the instructions"
        )

        @field_validator("prompts")
        @classmethod
        def _can_be_read(cls, prompts: Path | None) -> Path | None:
            read_prompts(prompts)
            return prompts

        @model_validator(mode="after")
        def _somebody_plays(self) -> Evolve.Config:
            for function, model in (("rewrite", "rewriter"), ("review", "reviewer")):
                if (getattr(self, function) is None) == (getattr(self, model) is None):
                    raise ValueError(
                        f"give `{function}` (a function `my_file.py:{function}`) or `{model}` (the name of a model in "
                        "`models`), one of the two"
                    )
            if self.prompts is not None and self.rewriter is None and self.reviewer is None:
                raise ValueError("`prompts` are for models, and both `rewrite` and `review` are functions")
            if self.sampling.samples != 1:
                raise ValueError("sampling.samples: a model answers once each time it is asked")
            return self

        @computed_field(description="a hash of both functions' code: other code is another game")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.rewrite, self.review])

    config: Config
    generation = {"temperature": 1.0}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens = config.steps, config.tokens
        self.models = {name: "frozen" for name in (config.rewriter, config.reviewer) if name is not None}
        self._seeds = Dataset(config.seeds)
        self.here = self._seeds.here
        self._players: dict[str, Player] = {}

    def examples(self, split: str) -> Sequence[Example]:
        self._seeds.most = self.most
        return self._seeds.examples(split)

    def fingerprint(self, split: str) -> str:
        return self._seeds.fingerprint(split)

    def setup(self, run: Run) -> None:
        c = self.config
        if digests([c.rewrite, c.review]) != c.digest:
            raise ConfigError(
                f"{self.name}: a function's file has changed since the run was prepared; start again"
            )
        for model in self.models:
            if model not in _named(run.pipeline):
                raise ConfigError(
                    f"`{self.name}` has a model `{model}` play, and `models` does not say which that is: "
                    f"`models: {{{model}: {{causal-lm: {{path: …}}}}}}`"
                )
        prompts = read_prompts(c.prompts)
        if c.rewriter is not None:
            self._players["rewrite"] = rewriter(policy_named(run.models, c.rewriter), c.sampling, prompts)
        if c.reviewer is not None:
            self._players["review"] = reviewer(policy_named(run.models, c.reviewer), c.sampling, prompts)

    def _player(self, name: str) -> Player:
        if name not in self._players:
            self._players[name] = Called(getattr(self.config, name))
        return self._players[name]

    # -- an episode -----------------------------------------------------------------------------------

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        if not isinstance(example.prompt, str):
            raise ComponentError("an instruction to begin with is text, and this is a list of messages")
        return Chain(self, example.prompt, noise), Turn(choices=self._choices(1))

    def _choices(self, step: int) -> tuple[str, ...]:
        return ACTIONS[:1] if step in self.config.breadth_at else ACTIONS

    def step_all(self, episodes: Sequence[Episode], texts: Sequence[str]) -> Sequence[Turn]:
        """All rewritings that are due, then all reviews of them."""
        chains = cast("Sequence[Chain]", episodes)
        for action in texts:
            if action not in ACTIONS:
                raise ComponentError(f"`{action}` is no way to rewrite; there are {', '.join(ACTIONS)}")
        befores = [chain.instruction for chain in chains]
        written = self._player("rewrite")(texts, befores, [chain.seed() for chain in chains])
        afters = [after.strip() or before for after, before in zip(written, befores, strict=True)]
        answers = self._player("review")(befores, afters, [chain.seed() for chain in chains])
        return [chain.turn(*one) for chain, *one in zip(chains, texts, afters, answers, strict=True)]

    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        """Of each action that was taken, how often it made a difference."""
        steps = [step for row in rollout.columns["transcript"] for step in row]
        taken = Counter(action for action, _ in steps)
        different = Counter(action for action, turn in steps if turn.reward)
        return {f"rate/{action}": different[action] / taken[action] for action in ACTIONS if taken[action]}


class Chain:
    """An instruction and how often it was rewritten."""

    def __init__(self, environment: Evolve, instruction: str, noise: Generator) -> None:
        self.environment, self.instruction, self.noise, self.done = environment, instruction, noise, 0

    def seed(self) -> int:
        """A number for whoever plays to draw from."""
        return int(torch.randint(2**62, (1,), generator=self.noise))

    def step(self, text: str) -> Turn:
        return self.environment.step_all([self], [text])[0]

    def turn(self, action: str, after: str, answer: str) -> Turn:
        """What comes back: the instruction as it now reads, and whether it differs from the one before."""
        self.instruction, self.done = after, self.done + 1
        different = float(answer.strip() == DIFFERENT)
        return Turn(
            after,
            different,
            done=self.done == self.environment.turns,
            choices=self.environment._choices(self.done + 1),
            metrics={f"taken/{action}": 1.0, f"differs/{action}": different},
        )


def _named(pipeline: Mapping[str, Any]) -> set[str]:
    """The models that a pipeline names; any other would be a copy of its policy."""
    parts = [pipeline, *pipeline.get("phases", ())]
    return {name for part in parts for name in part.get("models") or {}}
