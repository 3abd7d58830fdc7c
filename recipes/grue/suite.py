"""The leaderboard at the paper's size: what begins with a task's fine-tuned model, as a suite for `rlalign bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from recipes.grue.recipe import EVALUATED, METHODS, Recipe, Section, measured

ALGORITHMS = tuple(name for name in METHODS if name not in ("supervised", "ppo", "nlpo"))
"""Those that begin with the same model, draw as many responses, and so can be ranked."""
SHARED = ("task", "policy", "evaluate")
"""What all algorithms of a task have in common."""
SEEDS = 3
HEADER = """\
# GRUE as a leaderboard: six algorithms on every task, as the recipes beside this file have them. One GPU does; nobody
# has run it yet. Measured on `val`, as two tasks keep the references of `test` to themselves. Each task is ranked by
# its own reward, the first one where it has two: all are from 0 to 1, and better the higher.
"""


class Plain(yaml.SafeDumper):
    """Without anchors: what is the same in two places is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The file."""
    said = sections(tasks)
    return HEADER + yaml.dump(said, Dumper=Plain, sort_keys=False, default_flow_style=None, width=120)


def sections(tasks: Mapping[str, Mapping[str, Any]]) -> Section:
    """What the file says."""
    worlds = {task: world([Recipe(task, row, name) for name in ALGORITHMS]) for task, row in tasks.items()}
    return {
        "name": "grue",
        "title": "GRUE",
        "results": "results",
        "pipeline": {"checkpoints": {"last": 1}},
        "metrics": {"score": "score", "length": "length"},
        "worlds": worlds,
        "arms": {name: {} for name in ALGORITHMS},
        "seeds": SEEDS,
        "final": {"final": {"evaluate": {"examples": 2 * EVALUATED}}},
        "bench": {"scores": {task: {"metric": "score", "worst": 0.0, "best": 1.0} for task in tasks}},
    }


def world(recipes: Sequence[Recipe]) -> Section:
    """A task: what is the same for all algorithms, its evaluation among it, and what each says beside that."""
    one = recipes[0]
    score = measured(one.rewards[0])
    named: Section = {score: {}} if isinstance(score, str) else {k: v for k, v in score.items() if k != "as"}
    evaluate = {
        "split": "val",
        "examples": EVALUATED,
        "generation": one.row["evaluate"]["generation"],
        "use": [{**named, "as": "score"}, *one.row["metrics"]],
    }
    own = {r.method: {name: said for name, said in r.sections.items() if name not in SHARED} for r in recipes}
    shared = {"task": one.sections["task"], "policy": one.sections["policy"], "evaluate": evaluate}
    return {"set": shared, "arms": own}
