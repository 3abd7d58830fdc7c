"""A game of words in which everything is known: for the first try, for tests and for the study. No model is needed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlalign_plugin_teams_rl.players import ACTIONS

CHANCE = dict.fromkeys(ACTIONS, 0.5) | {"breadth": 0.9, "complicate": 0.7}
"""How often a rewriting makes a difference …"""
AGAIN = 0.05
"""… and one of the kind that came just before."""


def rewrite(actions: Sequence[str], instructions: Sequence[str]) -> list[str]:
    """The instruction with the name of the action behind it, in brackets: the words say what was done to them."""
    return [f"{instruction} [{action}]" for action, instruction in zip(actions, instructions, strict=True)]


def review(befores: Sequence[str], afters: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """`Not Equal` with the chance that the last two actions have."""
    return [
        "Not Equal" if random.Random(seed).random() < chance(_last(before), _last(after)) else "Equal"
        for before, after, seed in zip(befores, afters, seeds, strict=True)
    ]


def chance(before: str | None, action: str) -> float:
    """How often an action makes a difference after another, or after none."""
    return AGAIN if action == before else CHANCE[action]


def _last(instruction: str) -> str:
    """The action that was applied last; none leaves a text that is no action."""
    return instruction.rpartition("[")[2].rstrip("]")
