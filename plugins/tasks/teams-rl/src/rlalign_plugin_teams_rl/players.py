"""Who rewrites an instruction and who judges the result: a user's function, or a frozen model that is prompted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from rlalign import ComponentError, ConfigError, Example, Policy, Sampling
from rlalign.randomness import Seeds
from rlalign_plugin_function_reward.source import asked_by, named

ACTIONS = ("breadth", "constraints", "deepen", "concretise", "reasoning", "complicate")
"""The paper's six ways to rewrite an instruction."""
REVIEW = "review"
PROMPTS = Path(__file__).with_name("prompts.json")
PLACES = {**dict.fromkeys(ACTIONS, ("instruction",)), REVIEW: ("before", "after")}
"""What each prompt has to mention in braces."""


class Player(Protocol):
    """Two lists and a seed for each pair in; a text for each out."""

    def __call__(
        self, first: Sequence[str], second: Sequence[str], seeds: Sequence[int]
    ) -> Sequence[str]: ...


class Called:
    """A function `(first, second)` of two lists; one that has a parameter `seeds` is given those too."""

    def __init__(self, path: Path) -> None:
        self.function: Callable[..., Any] = named(path)
        self.seeded = "seeds" in asked_by(self.function).names
        self.path = path

    def __call__(self, first: Sequence[str], second: Sequence[str], seeds: Sequence[int]) -> Sequence[str]:
        more = {"seeds": list(seeds)} if self.seeded else {}
        found = self.function(list(first), list(second), **more)
        if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != len(first):
            got = f"{len(found)}" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
            raise ComponentError(f"`{self.path.name}` must return a list of {len(first)} texts, got {got}")
        if wrong := [text for text in found if not isinstance(text, str)]:
            raise ComponentError(f"`{self.path.name}` must return texts, and one is {wrong[0]!r}")
        return found


class Asked:
    """A frozen model that is given a prompt for each pair."""

    def __init__(self, model: Policy, how: Sampling, prompt: Callable[[str, str], str]) -> None:
        self.model, self.how, self.prompt = model, how, prompt

    def __call__(self, first: Sequence[str], second: Sequence[str], seeds: Sequence[int]) -> Sequence[str]:
        texts = [self.prompt(*pair) for pair in zip(first, second, strict=True)]
        examples = [
            Example(f"{place}", [{"role": "user", "content": text}] if self.model.chats else text)
            for place, text in enumerate(texts)
        ]
        steps = self.how.max_new_tokens
        # Its seed alone says what a row draws, so that an episode is the same beside others and by itself.
        uniforms = torch.cat(
            [Seeds(s).uniforms("asked", positions=range(1), samples=1, steps=steps) for s in seeds]
        )
        rollout = self.model.sample(examples, self.how, uniforms)
        found = dict(zip(rollout.group_N.tolist(), rollout.texts, strict=True))
        return [found[place] for place in range(len(texts))]


def read_prompts(path: Path | None) -> Mapping[str, str]:
    """The prompts of a file, or those that come with the package. Raises ValueError where one is missing or unfit."""
    path = path or PROMPTS
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON object of prompts: {error}") from None
    if not isinstance(said, dict) or set(said) != set(PLACES):
        raise ValueError(f"{path}: expected a JSON object with exactly these keys: {', '.join(PLACES)}")
    for name, places in PLACES.items():
        missing = [place for place in places if f"{{{place}}}" not in str(said[name])]
        if missing:
            raise ValueError(f"{path}: `{name}` has no {{{missing[0]}}}, where the text to be read is put")
    return said


def filled(prompt: str, **texts: str) -> str:
    """A prompt with texts in its places; braces inside of them mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), prompt)


def rewriter(model: Policy, how: Sampling, prompts: Mapping[str, str]) -> Player:
    """A model that rewrites."""
    return Asked(model, how, lambda action, instruction: filled(prompts[action], instruction=instruction))


def reviewer(model: Policy, how: Sampling, prompts: Mapping[str, str]) -> Player:
    """A model that compares."""
    return Asked(model, how, lambda before, after: filled(prompts[REVIEW], before=before, after=after))


def policy_named(models: Mapping[str, Any], name: str) -> Policy:
    """The frozen model of this name."""
    model = models[name]
    if not isinstance(model, Policy):
        raise ConfigError(f"models.{name}: expected a model that writes, such as `causal-lm`")
    return model
