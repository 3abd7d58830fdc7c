"""A Python function as a reward: of a notebook, or of a script that starts runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from rlalign.data.batch import Score
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, ConfigError, attributed_to
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl

GIVEN = ("prompts", "texts", "examples")
"""What a function may ask for by the names of its parameters: lists, with an entry for each response."""


class FunctionReward(Component):
    """What a function returns: a number for each response, higher is better."""

    function: Callable[..., Any]

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        examples = [rollout.examples[g] for g in rollout.group_N.tolist()]
        known = {"prompts": [e.prompt for e in examples], "texts": list(rollout.texts), "examples": examples}
        function = type(self).function
        asked = [name for name in inspect.signature(function).parameters if name in known]
        called, count = f"the function `{type(self).__qualname__}`", len(rollout)
        with attributed_to(called, type(self).__qualname__):
            values = function(**{name: known[name] for name in asked})
        with attributed_to(f"{called} returned a {type(values).__name__}, no list of {count} numbers: torch"):
            value = torch.as_tensor(values, dtype=torch.float32, device=rollout.group_N.device)
        if value.shape != (count,):
            raise ComponentError(f"{called} returned {tuple(value.shape)} numbers for {count} responses")
        return Score(value)


def as_component(name: str, given: Callable[..., Any]) -> type[Any]:
    """A class as it is; a function as a reward."""
    if isinstance(given, type):
        return given
    parameters = inspect.signature(given).parameters.values()
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if strange := [asked for asked in needed if asked not in GIVEN]:
        raise ConfigError(
            f"`{name}` asks for `{strange[0]}`; a reward function may ask for {', '.join(GIVEN)}"
        )
    own = {
        "function": staticmethod(given),
        "__doc__": given.__doc__,
        "__module__": given.__module__,
        "__qualname__": getattr(given, "__qualname__", name),
    }
    return type(name, (FunctionReward,), own)
