"""Align language models with reinforcement learning: a minimal core, and plugins for everything else.

Names are imported when they are first used, so that `import rlalign` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlalign.component import Component, Lagging, Options, Task
    from rlalign.errors import CheckpointError, ComponentError, ConfigError, RLAlignError
    from rlalign.examples import Joined, LazyExamples
    from rlalign.hookspecs import hookimpl
    from rlalign.logits import log_distribution
    from rlalign.pipeline import Sampling
    from rlalign.policy import Constraint, Decoder, Policy, Value
    from rlalign.run import Run
    from rlalign.sampling import Nucleus, sample
    from rlalign.types import Batch, Example, Loss, Outputs, Reward, Rollout, Score, concat, logged_rollout

_HOMES = {
    "component": ("Component", "Lagging", "Options", "Task"),
    "errors": ("CheckpointError", "ComponentError", "ConfigError", "RLAlignError"),
    "examples": ("Joined", "LazyExamples"),
    "hookspecs": ("hookimpl",),
    "logits": ("log_distribution",),
    "pipeline": ("Sampling",),
    "policy": ("Constraint", "Decoder", "Policy", "Value"),
    "run": ("Run",),
    "sampling": ("Nucleus", "sample"),
    "types": (
        "Batch",
        "Example",
        "Loss",
        "Outputs",
        "Reward",
        "Rollout",
        "Score",
        "concat",
        "logged_rollout",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "CheckpointError",
    "Component",
    "ComponentError",
    "ConfigError",
    "Constraint",
    "Decoder",
    "Example",
    "Joined",
    "Lagging",
    "LazyExamples",
    "Loss",
    "Nucleus",
    "Options",
    "Outputs",
    "Policy",
    "RLAlignError",
    "Reward",
    "Rollout",
    "Run",
    "Sampling",
    "Score",
    "Task",
    "Value",
    "concat",
    "hookimpl",
    "log_distribution",
    "logged_rollout",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rlalign' has no attribute {name!r}")
    return getattr(import_module(f"rlalign.{_HOME[name]}"), name)
