"""A table learns to drive Gymnasium's Taxi from four starts: python examples/taxi.py

Needs the extra `gymnasium` of rlalign-plugin-environments. What the table reads is the state's number, what it may say
are the moves that Taxi's own mask leaves. An episode that is cut after 50 moves has paid 50 for them; a passenger who
arrives brings 20.
"""

from __future__ import annotations

import sys
from typing import Any

import rlalign

MOVES = ["south", "north", "east", "west", "pick-up", "drop-off"]
PIPELINE: dict[str, Any] = {
    "task": {"gymnasium": {"id": "Taxi-v4", "actions": MOVES, "steps": 50, "tokens": 150, "starts": 4}},
    "policy": {
        "table": {
            "actions": MOVES,
            "state": "observation",
            "prompts": [str(state) for state in range(500)],
        }
    },
    "algorithm": {"rloo": {"credit": "turn"}},
    "generation": {"samples": 16},
    "train": {"iterations": 20, "prompts": 8, "lr": 0.3},
    "evaluate": {"every": 10, "examples": 64},
}


def main(*overrides: str) -> None:
    result = rlalign.run(rlalign.load(PIPELINE, list(overrides)))
    for row in result.evaluations:
        print(f"after {row['iteration']:3} iterations: return {row['eval/played']:6.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
