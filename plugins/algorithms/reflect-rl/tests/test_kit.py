"""The conformance kit on `reflect-rl`, as published and as PPO's clipped ratio beside a baseline."""

from __future__ import annotations

from rlalign.testing import ComponentTests

CELLS = [f"{cell}{key}" for key in ("", " key") for cell in range(5)]


class TestReflectRL(ComponentTests):
    component = "reflect-rl"
    pipeline = {
        "task": {"toy-corridor": {"rewrites": True, "steps": 5}},
        "policy": {"table": {"actions": ["left", "right"], "prompts": CELLS}},
        "rewards": ["played"],
        "generation": {"samples": 3, "max_new_tokens": 1},
    }


class TestClipped(TestReflectRL):
    options = {"baseline": "others", "ratio": "token", "clip": [0.1, 0.1], "success": 0.2}
