"""The work of a row: a model, an algorithm, a scenario, a precision. Both sides read it from here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import shapes
from pydantic import Field

from rlalign import Component, Example, Options, Rollout, Score, Task, hookimpl


@dataclass(frozen=True)
class Scenario:
    """`prompts` × `samples` responses of `new` tokens to prompts of `prompt` tokens."""

    prompts: int
    samples: int
    prompt: int
    new: int
    mixed: bool = False
    """Prompts of half to all of `prompt` tokens, and responses of geometric lengths, cut at `new`."""
    mean: float = 15.0
    """The mean length of those before the cut."""


SCENARIOS = {
    "S": Scenario(8, 4, 16, 48),
    "V": Scenario(8, 4, 16, 48, mixed=True),
    "L": Scenario(4, 8, 256, 64),
    "K": Scenario(2, 16, 16, 48),
}
ALGORITHMS = ("rloo", "grpo", "ppo", "dpo")
MODELS = ("tiny", "qwen", "gpt2", "real")
DTYPES = ("float32", "bfloat16")
STEPS = {"tiny": (3, 17), "qwen": (3, 15), "gpt2": (1, 5), "real": (1, 5)}
"""Steps that do not count, and that do."""
LONG = 3
"""Steps of a large model that count where prompts are long."""
LR, KL, BETA, EPOCHS = 1e-6, 0.05, 0.1, 4


@dataclass(frozen=True)
class Row:
    """One measurement; its name is `model/algorithm/scenario/dtype`."""

    model: str
    algorithm: str
    scenario: str
    dtype: str

    @property
    def name(self) -> str:
        return "/".join((self.model, self.algorithm, self.scenario, self.dtype))

    @property
    def shape(self) -> Scenario:
        """PPO has as many prompts as others have responses, DPO half as many: pairs."""
        s = SCENARIOS[self.scenario]
        count = s.prompts * s.samples
        prompts, samples = {"ppo": (count, 1), "dpo": (count // 2, 2)}.get(
            self.algorithm, (s.prompts, s.samples)
        )
        return Scenario(prompts, samples, s.prompt, s.new, s.mixed, s.mean)

    @property
    def responses(self) -> int:
        return self.shape.prompts * self.shape.samples

    @property
    def steps(self) -> tuple[int, int]:
        """Steps that do not count, and that do."""
        warm_up, count = STEPS[self.model]
        return warm_up, min(count, LONG) if self.large and self.scenario == "L" else count

    @property
    def large(self) -> bool:
        return self.model in ("gpt2", "real")

    def tells(self) -> bool:
        """Whether it is measured unless all are asked for: not where it would say what a cheaper row says too."""
        if self.scenario in ("V", "K"):
            return self.algorithm == "rloo" and self.dtype == "float32"
        if self.scenario == "L":
            return self.dtype == "float32" and (self.algorithm == "rloo" or not self.large)
        return self.dtype == "float32" or self.algorithm == "rloo" or not self.large

    def fits(self) -> str:
        """Why nothing can be compared here; empty where something can."""
        if self.algorithm in ("ppo", "dpo") and self.scenario == "K":
            return f"{self.algorithm} has no sixteen responses to a prompt"
        if self.algorithm in ("ppo", "dpo") and self.scenario == "V":
            return "TRL pads what it is given: lengths are compared where both sample a group"
        if self.model == "real" and self.scenario == "V":
            return "a real model ends when it likes: the lengths would not be the same"
        return ""


def row_of(name: str) -> Row:
    return Row(*name.split("/"))


def rows(
    models: Sequence[str], algorithms: Sequence[str], scenarios: Sequence[str], dtypes: Sequence[str]
) -> list[Row]:
    """All that can be compared, the plain ones first."""
    every = [Row(m, a, s, d) for d in dtypes for s in scenarios for m in models for a in algorithms]
    return [row for row in every if not row.fits()]


def folder_of(row: Row, root: Path, real: str | None) -> Path:
    """The folder of the row's model."""
    if row.model == "real":
        if real is None:
            raise SystemExit(f"{row.name}: say which model with MODEL=FOLDER")
        return Path(real).resolve()
    return shapes.lay(row.model, root, ends_after=row.shape.mean if row.shape.mixed else None)


def texts(
    folder: Path, count: int, prompt: int, new: int, mixed: bool = False
) -> tuple[list[str], list[tuple[str, str]]]:
    """`count` prompts, and two logged responses to each."""
    prompts = shapes.prompts(folder, count, prompt)
    if mixed:
        least = prompt // 2
        prompts = [" ".join(x.split()[: least + i % (prompt - least + 1)]) for i, x in enumerate(prompts)]
    made = shapes.prompts(folder, count + 1, new)
    return prompts, list(itertools.pairwise(made))


def odd(text: str) -> float:
    """The reward: the share of words whose last letter has an odd code. Both sides call it."""
    words = text.split()
    return sum(ord(word[-1]) % 2 for word in words) / max(1, len(words))


class Texts(Task):
    """Prompts of a given number of tokens, with two logged responses each where they are asked for."""

    class Config(Options):
        """Options of `texts`."""

        folder: str = Field(description="the folder of the model whose tokens are counted")
        size: int = Field(description="examples")
        prompt: int = Field(description="tokens of a prompt")
        new: int = Field(description="tokens of a logged response")
        mixed: bool = Field(False, description="prompts of half to all of those tokens")
        logged: bool = Field(False, description="whether there are logged responses")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        c = self.config
        prompts, pairs = texts(Path(c.folder), c.size, c.prompt, c.new, c.mixed)
        return [
            Example(
                id=str(i), prompt=prompt, **({"responses": pair, "scores": (1.0, 0.0)} if c.logged else {})
            )
            for i, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True))
        ]


class Odd(Component):
    """The reward of every response."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([odd(text) for text in rollout.texts]))


COMPONENTS: dict[str, type[Any]] = {"texts": Texts, "odd": Odd}

_METHODS: dict[str, dict[str, Any]] = {
    "rloo": {
        "algorithm": {"rloo": {"ratio": "sequence", "clip": [0.2, 0.2]}},
        "rewards": ["odd", {"kl": {"coef": KL}}],
    },
    "grpo": {"algorithm": {"grpo": {"kl": 0.0}}, "rewards": ["odd"]},
    "ppo": {
        "algorithm": {"ppo": {"value_clip": 0.2, "whiten": "batch", "truncated": "terminal"}},
        "rewards": ["odd", {"kl": {"coef": KL}}],
        "models": {"value": {"value-head": {"trunk": "own"}}},
    },
    "dpo": {"algorithm": {"dpo": {"beta": BETA}}, "responses": "logged"},
}


def pipeline(row: Row, folder: Path, iterations: int) -> dict[str, Any]:
    """The row as a pipeline of ours."""
    s, ppo = row.shape, row.algorithm == "ppo"
    least = {} if s.mixed else {"min_new_tokens": s.new}
    return {
        "task": {
            "texts": {"folder": str(folder), "size": iterations * s.prompts, "prompt": s.prompt, "new": s.new}
            | {"mixed": s.mixed, "logged": row.algorithm == "dpo"}
        },
        "policy": {"causal-lm": {"path": str(folder), "tokenizer": str(shapes.tokenizer_of(folder))}},
        **_METHODS[row.algorithm],
        "generation": {"samples": s.samples, "max_new_tokens": s.new, **least},
        "train": {
            "iterations": iterations,
            "prompts": s.prompts,
            "epochs": EPOCHS if ppo else 1,
            "lr": LR,
            "dtype": row.dtype,
            "clip": None if ppo else 1.0,  # TRL's PPO does not clip the gradient
        },
        "device": "cpu",
    }
