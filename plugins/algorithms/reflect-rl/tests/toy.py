"""The whole of Reflect-RL in small: one table learns to reflect, then a frozen copy of it reflects for it."""

from __future__ import annotations

from typing import Any

CELLS, WAYS, LABELS = range(1, 6), ("left", "right"), ("0", "1")
ASIDES = [f"{cell} {way}" for cell in CELLS for way in WAYS]
SEEN = [f"{cell}|{word}" for cell in CELLS for word in ("", *WAYS, *LABELS)]
POLICY = {"table": {"actions": [*WAYS, *LABELS], "prompts": [*ASIDES, *SEEN]}}
WORLD = {"env": {"hidden-goal": {}}, "prompt": "{state}|{reflection}", "temperature": 1.0}


def play(
    task: dict[str, Any] | None = None, algorithm: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """The second stage: the policy learns to act."""
    return {
        "name": "act",
        "task": {"reflecting": {**WORLD, **(task or {})}},
        "algorithm": {"reflect-rl": {"baseline": "others", **(algorithm or {})}},
        "generation": {"samples": 8},
        "train": {"iterations": 30, "prompts": 8, "lr": 0.3},
        "evaluate": {"every": 100, "examples": 64, "use": ["played"], "generation": {"samples": 4}},
        **changes,
    }


def pipeline(advice: dict[str, Any] | None = None, *stages: dict[str, Any]) -> dict[str, Any]:
    """Both stages."""
    reflect = {
        "name": "reflect",
        "task": {"hidden-goal-advice": advice or {}},
        "algorithm": "sft",
        "train": {"iterations": 40, "prompts": 64, "lr": 0.3},
    }
    return {"policy": POLICY, "phases": [reflect, *(stages or (play(),))]}
