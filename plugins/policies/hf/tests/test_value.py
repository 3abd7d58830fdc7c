"""`value-head`, on whatever trunk it reads."""

from __future__ import annotations

from typing import Any

from rlalign.testing import ValueTests

ON_TEXT: dict[str, Any] = {
    "task": {"toy-reviews": {"size": 8}},
    "policy": {"causal-lm": {"path": "pkg:rlalign_plugin_toy_tasks/models/toy-reviews"}},
    "rewards": ["toy-sentiment"],
}


class TestOnThePolicy(ValueTests):
    component = "value-head"


class TestOnTheReferencePerPrompt(ValueTests):
    component = "value-head"
    options = {"trunk": "reference", "per_prompt": True}


class TestOnItsOwnTrunk(ValueTests):
    component = "value-head"
    options = {"trunk": "own"}
    pipeline = ON_TEXT


class TestOnItsOwnTrunkPerPrompt(ValueTests):
    component = "value-head"
    options = {"trunk": "own", "per_prompt": True}
    pipeline = ON_TEXT
